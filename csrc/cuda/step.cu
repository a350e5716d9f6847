#include "step.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <new>
#include <stdexcept>
#include <string>

#include "../rules.h"

namespace ux::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPack = 4;  // elements a thread holds at a time: sixteen bytes of float

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("unlearn_ext, CUDA ") + what + ": " + cudaGetErrorString(error));
}

class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() { cudaSetDevice(before_); }

  private:
    int before_ = 0;
};

// The dtype is a tag, the same for all threads of a block, so the switch costs a predictable branch, not a template.
__device__ float load_one(const void* base, DType dtype, int64_t i) {
    switch (dtype) {
        case DType::f32: return static_cast<const float*>(base)[i];
        case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[i]);
        default: return __half2float(static_cast<const __half*>(base)[i]);
    }
}

__device__ void store_one(void* base, DType dtype, int64_t i, float x) {
    switch (dtype) {
        case DType::f32: static_cast<float*>(base)[i] = x; return;
        case DType::bf16: static_cast<__nv_bfloat16*>(base)[i] = __float2bfloat16(x); return;
        default: static_cast<__half*>(base)[i] = __float2half(x); return;
    }
}

__device__ bool aligned(const void* base, DType dtype) {
    return reinterpret_cast<uintptr_t>(base) % (dtype == DType::f32 ? 16 : 8) == 0;
}

__device__ void load_pack(const void* base, DType dtype, int64_t i, float* out) {
    if (!aligned(base, dtype)) {
#pragma unroll
        for (int k = 0; k < kPack; ++k) out[k] = load_one(base, dtype, i + k);
    } else if (dtype == DType::f32) {
        const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(base) + i);
        out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    } else {
        const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(base) + i);
        const uint16_t halves[kPack] = {uint16_t(v.x), uint16_t(v.x >> 16), uint16_t(v.y), uint16_t(v.y >> 16)};
#pragma unroll
        for (int k = 0; k < kPack; ++k)
            out[k] = dtype == DType::bf16 ? __bfloat162float(__ushort_as_bfloat16(halves[k])) : __half2float(__ushort_as_half(halves[k]));
    }
}

__device__ void store_pack(void* base, DType dtype, int64_t i, const float* x) {
    if (dtype == DType::f32 && aligned(base, dtype)) {
        *reinterpret_cast<float4*>(static_cast<float*>(base) + i) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
#pragma unroll
        for (int k = 0; k < kPack; ++k) store_one(base, dtype, i + k, x[k]);
    }
}

struct Place { const Row* row; int64_t begin, n; };

__device__ Place place_of(const Job& job, int64_t chunk) {
    const Row* row = job.rows + row_of_chunk(job.rows, job.n_rows, chunk);
    const int64_t begin = (chunk - row->first_chunk) * kChunk;
    return {row, begin, min(kChunk, row->numel - begin)};
}

// One thread derives the coefficients (two double-precision powers for AdamW); the block shares them.
template <class R> __device__ R shared_rule(const Job& job, const Row& row) {
    __shared__ alignas(16) char storage[sizeof(R)];
    __syncthreads();
    if (threadIdx.x == 0) new (storage) R(job.hyper + row.group() * kHyper, row);
    __syncthreads();
    return *reinterpret_cast<R*>(storage);
}

template <class R> struct Streams {
    void* base[kOperands];
    DType dtype[kOperands];

    __device__ explicit Streams(const Place& at) {
#pragma unroll
        for (int o = 0; o < kOperands; ++o) base[o] = at.row->address(o, at.begin), dtype[o] = at.row->dtype(o);
    }
    __device__ void load(int64_t i, int count, float (*x)[kOperands]) const {
#pragma unroll
        for (int o = 0; o < kOperands; ++o) {
            float pack[kPack] = {};
            if ((R::kReads >> o & 1) && base[o]) {
                if (count == kPack) load_pack(base[o], dtype[o], i, pack);
                else
#pragma unroll
                    for (int k = 0; k < kPack; ++k)
                        if (k < count) pack[k] = load_one(base[o], dtype[o], i + k);
            }
#pragma unroll
            for (int k = 0; k < kPack; ++k) x[k][o] = pack[k];
        }
    }
    __device__ void store(int64_t i, int count, const float (*x)[kOperands]) const {
#pragma unroll
        for (int o = 0; o < kOperands; ++o) {
            if (!(R::kWrites >> o & 1) || !base[o]) continue;
            float pack[kPack];
#pragma unroll
            for (int k = 0; k < kPack; ++k) pack[k] = x[k][o];
            if (count == kPack) store_pack(base[o], dtype[o], i, pack);
            else
#pragma unroll
                for (int k = 0; k < kPack; ++k)
                    if (k < count) store_one(base[o], dtype[o], i + k, pack[k]);
        }
    }
};

// Adds over the block in a fixed tree; the result is valid in thread 0.
__device__ void reduce_block(double* sums) {
    __shared__ double warps[kWarps][kSums];
#pragma unroll
    for (int s = 0; s < kSums; ++s)
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) sums[s] += __shfl_down_sync(0xffffffffu, sums[s], offset);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int s = 0; s < kSums; ++s) warps[threadIdx.x / 32][s] = sums[s];
    __syncthreads();
    if (threadIdx.x == 0)
#pragma unroll
        for (int w = 1; w < kWarps; ++w)
#pragma unroll
            for (int s = 0; s < kSums; ++s) sums[s] += warps[w][s];
}

// True in the block that finishes last; every other block's writes are then visible to it.
__device__ bool last_block(uint32_t* counter) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) == gridDim.x - 1;
        if (last) *counter = 0;  // ready for the next launch, or for the replay of a graph
    }
    __syncthreads();
    __threadfence();
    return last;
}

__device__ int64_t first_chunk_of_group(const Job& job, int64_t group) {
    int64_t low = 0, high = job.n_rows;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (job.rows[middle].group() < group) low = middle + 1; else high = middle;
    }
    return low < job.n_rows ? job.rows[low].first_chunk : job.n_chunks;
}

__device__ void combine(const Job& job) {
    for (int64_t group = 0; group < job.n_groups; ++group) {
        const int64_t begin = first_chunk_of_group(job, group), end = first_chunk_of_group(job, group + 1);
        double sums[kSums] = {};
        for (int64_t chunk = begin + threadIdx.x; chunk < end; chunk += kThreads)
            for (int s = 0; s < kSums; ++s) sums[s] += __ldcg(job.partials + chunk * kSums + s);
        reduce_block(sums);
        if (threadIdx.x == 0)
            for (int s = 0; s < kSums; ++s) job.sums[group * kSums + s] = sums[s];
    }
}

template <class R> __global__ void __launch_bounds__(kThreads) stats_kernel(Job job, uint32_t* counter) {
    for (int64_t chunk = blockIdx.x; chunk < job.n_chunks; chunk += gridDim.x) {
        const Place at = place_of(job, chunk);
        const R rule = shared_rule<R>(job, *at.row);
        const Streams<R> streams(at);
        float lanes[kSums] = {};
        for (int64_t i = int64_t(threadIdx.x) * kPack; i < at.n; i += kThreads * kPack) {
            const int count = int(min(int64_t(kPack), at.n - i));
            float x[kPack][kOperands];
            streams.load(i, count, x);
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
                if (k >= count) continue;
                const Element<float> e = rule.element(x[k]);
                accumulate(e, x[k][kGrad], x[k][kConstraintGrad], lanes);
            }
        }
        double sums[kSums];
#pragma unroll
        for (int s = 0; s < kSums; ++s) sums[s] = lanes[s];
        reduce_block(sums);
        if (threadIdx.x == 0)
            for (int s = 0; s < kSums; ++s) job.partials[chunk * kSums + s] = sums[s];
    }
    if (!last_block(counter)) return;
    combine(job);
    if (threadIdx.x == 0 && job.solve) solve(job.sums, job.hyper, job.n_groups, job.control, job.report);
}

template <class R> __global__ void __launch_bounds__(kThreads) apply_kernel(Job job, uint32_t* counter) {
    if (job.report[kSkipped] != 0) return;  // every block reads the same flag, so none waits for another
    const float lambda = float(job.report[kLambda]), scale = float(job.report[kScale]);
    for (int64_t turn = blockIdx.x; turn < job.n_chunks; turn += gridDim.x) {
        const Place at = place_of(job, job.n_chunks - 1 - turn);  // backwards, to meet what the first pass left in cache
        const R rule = shared_rule<R>(job, *at.row);
        const Streams<R> streams(at);
        for (int64_t i = int64_t(threadIdx.x) * kPack; i < at.n; i += kThreads * kPack) {
            const int count = int(min(int64_t(kPack), at.n - i));
            float x[kPack][kOperands];
            streams.load(i, count, x);
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
                const Element<float> e = rule.element(x[k]);
                rule.step(x[k], e, lambda, scale);
            }
            streams.store(i, count, x);
        }
    }
    if (!last_block(counter)) return;
    for (int64_t r = threadIdx.x; r < job.n_rows; r += kThreads)
        if (job.rows[r].step) *reinterpret_cast<float*>(job.rows[r].step) += 1.0f;
}

template <class Kernel> void launch(Kernel kernel, const Job& job, uint32_t* counter, int device, void* stream) {
    const DeviceGuard guard(device);
    int processors = 0, resident = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device attribute");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0), "occupancy");
    const int64_t most = int64_t(processors) * (resident > 0 ? resident : 1);
    const int64_t blocks = job.n_chunks < most ? job.n_chunks : most;
    kernel<<<static_cast<unsigned>(blocks > 0 ? blocks : 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(job, counter);
    check(cudaGetLastError(), "launch");
}

}  // namespace

void run_stats(const Job& job, uint32_t* counter, int device, void* stream) {
    switch (job.rule) {
        case Rule::project: return launch(stats_kernel<ProjectRule>, job, counter, device, stream);
        case Rule::sgd: return launch(stats_kernel<SgdRule>, job, counter, device, stream);
        case Rule::adamw: return launch(stats_kernel<AdamWRule>, job, counter, device, stream);
    }
}

void run_apply(const Job& job, uint32_t* counter, int device, void* stream) {
    switch (job.rule) {
        case Rule::project: return launch(apply_kernel<ProjectRule>, job, counter, device, stream);
        case Rule::sgd: return launch(apply_kernel<SgdRule>, job, counter, device, stream);
        case Rule::adamw: return launch(apply_kernel<AdamWRule>, job, counter, device, stream);
    }
}

}  // namespace ux::cuda
