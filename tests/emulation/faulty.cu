// Small kernels with one fault each, and their correct versions. Usage: faulty <kernel> <fault: 0 or 1>; prints the
// results, or the error of the launch.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr int kThreads = 128;
constexpr unsigned kAll = 0xffffffffu;

// Fault: no barrier between a write to shared memory and another warp's read.
__global__ void reverse(float* data, bool fault) {
    __shared__ float shared[kThreads];
    const int i = threadIdx.x;
    shared[i] = data[i];
    if (!fault) __syncthreads();
    data[i] = shared[kThreads - 1 - i];
}

// Fault: no barrier between a read and the next iteration's write.
__global__ void reverse_twice(float* data, bool fault) {
    __shared__ float shared[kThreads];
    const int i = threadIdx.x;
    for (int round = 0; round < 2; ++round) {
        if (!fault) __syncthreads();
        shared[i] = data[i] + round;
        __syncthreads();
        data[i] = shared[kThreads - 1 - i];
    }
}

// Fault: lanes of a warp exchange values through shared memory without __syncwarp.
__global__ void rotate_in_warp(float* data, bool fault) {
    __shared__ float shared[kThreads];
    const int i = threadIdx.x;
    shared[i] = data[i];
    if (!fault) __syncwarp();
    data[i] = shared[i / 32 * 32 + (i + 1) % 32];
}

// Fault: all threads write to one variable, and the last write stays.
__global__ void race(float* data, bool fault) {
    __shared__ float last;
    if (threadIdx.x == 0 || fault) last = data[threadIdx.x];
    __syncthreads();
    data[threadIdx.x] += last;
}

// Fault: shared memory is read before it is written.
__global__ void uninitialized(float* data, bool fault) {
    __shared__ float total;
    if (threadIdx.x == 0 && !fault) total = 0;
    __syncthreads();
    atomicAdd(&total, data[threadIdx.x]);
    __syncthreads();
    data[threadIdx.x] = total;
}

// Fault: a barrier that half of the threads do not reach, because they have returned.
__global__ void early_return(float* data, bool fault) {
    if (fault && threadIdx.x >= kThreads / 2) return;
    __syncthreads();
    data[threadIdx.x] += 1;
}

// Fault: two branches, each with a barrier of its own.
__global__ void two_barriers(float* data, bool fault) {
    if (fault && threadIdx.x % 64 == 0) {
        data[threadIdx.x] += 1;
        __syncthreads();
    } else {
        data[threadIdx.x] += 1;
        __syncthreads();
    }
}

// Fault: a shuffle that half of the lanes do not reach.
__global__ void divergent_shuffle(float* data, bool fault) {
    float x = data[threadIdx.x];
    if (!fault || threadIdx.x % 32 < 16) x += __shfl_down_sync(kAll, x, 16);
    data[threadIdx.x] = x + __shfl_sync(kAll, x, 0);
}

// Fault: a lane that is not in its mask.
__global__ void outside_mask(float* data, bool fault) {
    const unsigned half = 0xffffu << (threadIdx.x % 32 / 16 * 16);
    data[threadIdx.x] += __shfl_sync(fault ? 0xffffu : half, data[threadIdx.x], threadIdx.x % 32 / 16 * 16);
}

// Fault: a lane reads the value of one that does not take part.
__global__ void absent_source(float* data, bool fault) {
    if (threadIdx.x % 32 < 16) data[threadIdx.x] += __shfl_sync(0xffffu, data[threadIdx.x], fault ? 20 : 3);
}

// Fault: an index past the end of shared memory.
__global__ void outside_shared(float* data, bool fault) {
    __shared__ float shared[kThreads];
    float* const own = shared + threadIdx.x;
    own[fault] = 1;
    __syncthreads();
    data[threadIdx.x] = *own;
}

// Fault: an index past the end of global memory.
__global__ void outside_global(float* data, bool fault) { data[threadIdx.x + fault] = 1; }

// Fault: an index past the end of a local array.
__global__ void outside_local(float* data, bool fault) {
    float local[4] = {1, 2, 3, 4};
    float* volatile last = local + 3;
    data[threadIdx.x] = last[fault];
}

// Fault: a vector access at an address that is not a multiple of its size.
__global__ void misaligned(float* data, bool fault) {
    if (threadIdx.x < 4) reinterpret_cast<float4*>(data + fault)[threadIdx.x] = make_float4(1, 2, 3, 4);
}

// Votes and shuffles.
__global__ void everything(float* data, bool) {
    const int i = threadIdx.x, lane = i % warpSize;
    float x = data[i];
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(kAll, x, offset);  // lane 0 has the sum
    const float down = __shfl_down_sync(kAll, float(lane), 3);                              // lanes 29 to 31 keep their own
    data[i] = __shfl_sync(kAll, x, 0) + 1000 * down + __clz(__ballot_sync(kAll, lane == 5));
}

// The last block adds the partial sums of all.
__global__ void last_block(float* data, bool fault) {
    static unsigned counter = 0;
    static float partials[6];
    __shared__ bool last;
    const int block = blockIdx.x;
    if (threadIdx.x == 0) {
        partials[block] = data[block];
        __threadfence();
        last = fault ? block == 5 : atomicAdd(&counter, 1u) == 5;
        if (last) counter = 0;
    }
    __syncthreads();
    if (!last) return;
    float sum = 0;
    for (float partial : partials) sum += partial;
    data[threadIdx.x] = sum;
}

using Kernel = void (*)(float*, bool);
const struct {
    const char* name;
    Kernel kernel;
} kKernels[] = {{"reverse", reverse}, {"reverse_twice", reverse_twice}, {"rotate_in_warp", rotate_in_warp},
    {"race", race}, {"uninitialized", uninitialized}, {"early_return", early_return}, {"two_barriers", two_barriers},
    {"divergent_shuffle", divergent_shuffle}, {"outside_mask", outside_mask}, {"absent_source", absent_source},
    {"outside_shared", outside_shared}, {"outside_global", outside_global}, {"outside_local", outside_local},
    {"misaligned", misaligned}, {"everything", everything}, {"last_block", last_block}};

}  // namespace

int main(int, char** arguments) {
    for (const auto& [name, kernel] : kKernels) {
        if (std::string(arguments[1]) != name) continue;
        std::vector<float> values(kThreads);
        for (int i = 0; i < kThreads; ++i) values[i] = float(i);
        float* data = values.data();
        bool fault = arguments[2][0] == '1';
        void* addresses[] = {&data, &fault};
        const unsigned blocks = name == std::string("last_block") ? 6 : 1;
        if (const auto error = cudaLaunchKernel(kernel, blocks, kThreads, addresses, 0, nullptr)) {
            std::puts(cudaGetErrorString(error));
            return 2;
        }
        for (float value : values) std::printf("%g ", double(value));
        return 0;
    }
    return 1;
}
