// What the kernels use of CUDA's header of this name, for the emulator.
#pragma once
#include "cuda_emulator.h"

#define CUDART_VERSION 13000
#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static __attribute__((section("cuda_shared")))

// Vector types.

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Built-in variables.

#define threadIdx (::cuda_emulator::machine.fiber->index)
#define blockIdx (::cuda_emulator::machine.block->index)
#define blockDim (::cuda_emulator::machine.block_size)
#define gridDim (::cuda_emulator::machine.grid)
constexpr int warpSize = cuda_emulator::kWarp;

// Barriers, votes and shuffles. The last default argument is the line of the call.
#define CUDA_EMULATOR_SITE(name) ::cuda_emulator::Site site = {name, __builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(CUDA_EMULATOR_SITE("__syncthreads")) {
    cuda_emulator::wait(cuda_emulator::State::at_block, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMULATOR_SITE("__syncwarp")) {
    cuda_emulator::vote(mask, false, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE("__ballot_sync")) {
    return cuda_emulator::vote(mask, predicate, site);
}
template <class T> T __shfl_sync(unsigned mask, T value, int source, CUDA_EMULATOR_SITE("__shfl_sync")) {
    return cuda_emulator::shuffle(mask, value, source % warpSize, site);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int delta, CUDA_EMULATOR_SITE("__shfl_down_sync")) {
    const int lane = cuda_emulator::machine.fiber->lane();
    return cuda_emulator::shuffle(mask, value, lane + delta < warpSize ? lane + delta : lane, site);
}

// Memory. Only one thread runs at a time, so fences and atomicity are free.

inline void __threadfence() {}
template <class T> T __ldcg(const T* address) { return *address; }
template <class T> T atomicAdd(T* address, std::common_type_t<T> value) {
    return std::exchange(*address, T(*address + value));
}

// Arithmetic.

template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }

// The runtime: one device of three processors with two resident blocks each.

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

namespace cuda_emulator {
inline thread_local cudaError_t last_error = cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), unsigned grid, unsigned block, void** arguments,
    size_t dynamic_shared, cudaStream_t) {
    using namespace cuda_emulator;
    static_assert((size_t(0) + ... + sizeof(Parameters)) <= kMaxArguments);
    const std::lock_guard<std::mutex> lock(machine.mutex);
    if (!grid || !block || block % kWarp || block > kMaxThreads || dynamic_shared)
        return last_error = cudaErrorInvalidValue;
    machine.grid = {grid}, machine.block_size = {block};
    machine.kernel = [&] { call(kernel, arguments, std::index_sequence_for<Parameters...>{}); };
    return last_error = machine.launch() ? cudaSuccess : cudaErrorLaunchFailure;
}
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_emulator::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorLaunchFailure) return cuda_emulator::machine.error.c_str();
    return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidValue : cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 3, cudaSuccess; }
template <class Kernel> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Kernel, int, size_t) {
    return *n = 2, cudaSuccess;
}
