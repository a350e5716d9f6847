#include "step.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <stdexcept>
#include <string>

#include "../rules.h"
#include "pack.cuh"

namespace ux::cuda {

namespace {

constexpr int kThreads = 32 * kTurn;  // a warp for each chunk of a turn
constexpr int kMostDevices = 64;

// Launches carry 32 KB of arguments since CUDA 12.1, and 4 KB before.
#if CUDART_VERSION >= 12010
constexpr int kArgumentBytes = 32764;
#else
constexpr int kArgumentBytes = 4096;
#endif
constexpr int kRowsInArguments = (kArgumentBytes - int(sizeof(Job)) - 16) / int(sizeof(Row));

// Blocks a multiprocessor must hold for enough bytes to be under way: the fewer the streams, the more blocks.
struct Blocks { int stats, apply; };
template <class R> constexpr Blocks kBlocks{4, 4};
template <> constexpr Blocks kBlocks<SgdRule>{4, 2};
template <> constexpr Blocks kBlocks<AdamWRule>{3, 2};

struct InArguments {
    Row rows[kRowsInArguments];
    __device__ const Row& operator[](int64_t i) const { return rows[i]; }
};

struct OnDevice {
    const Row* rows;
    __device__ const Row& operator[](int64_t i) const { return rows[i]; }
};

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("unlearn_ext, CUDA ") + what + ": " + cudaGetErrorString(error));
}

class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != before_;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }

  private:
    int before_ = 0;
    bool changed_ = false;
};

// A warp's coefficients, made anew only where the group or the step's number changes from one chunk to the next.
template <class R> struct Coefficients {
    const Job& job;
    int key = -1;
    float t = 0;
    R rule;

    __device__ explicit Coefficients(const Job& j) : job(j), rule(j.hyper, false, 1.0f) {}
    __device__ void move_to(const Row& row) {
        const int row_key = row.group() << 1 | (row.data[kFirst] != 0);
        const float row_t = row.step ? *reinterpret_cast<const float*>(row.step) + 1.0f : 0.0f;
        if (row_key == key && row_t == t) return;
        rule = R(job.hyper + row.group() * kHyper, row.data[kFirst] != 0, row_t);
        key = row_key, t = row_t;
    }
};

// The operands of one chunk. Lane l takes the packs l, l + 32, …, and of the elements before and after them the l-th.
struct Chunk {
    Stream streams[kOperands];
    int n, head, loose;  // elements; before the first pack; before it and after the last

    __device__ Chunk(const Row& row, const Place& at)
        : streams{{row.address(0, at.begin), row.dtype(0), head_of(row, at)},
                  {row.address(1, at.begin), row.dtype(1), head_of(row, at)},
                  {row.address(2, at.begin), row.dtype(2), head_of(row, at)},
                  {row.address(3, at.begin), row.dtype(3), head_of(row, at)},
                  {row.address(4, at.begin), row.dtype(4), head_of(row, at)}},
          n(static_cast<int>(at.end - at.begin)), head(head_of(row, at)) {
        loose = head + (n - head) % kPack;
    }
    static __device__ int head_of(const Row& row, const Place& at) {
        const int64_t head = at.begin ? 0 : row.head();  // every later chunk begins where a pack does
        return static_cast<int>(min(head, at.end - at.begin));
    }

    // body(x) for each element, x its operands; `writes` of them go back.
    template <class Body> __device__ void each(unsigned reads, unsigned writes, Body body) const {
        const int lane = threadIdx.x % 32;
        for (int i = head + lane * kPack; i + kPack <= n; i += 32 * kPack) {
            uint32_t words[kOperands][kPack] = {};
#pragma unroll
            for (int o = 0; o < kOperands; ++o)
                if ((reads >> o & 1) && streams[o].base) streams[o].fetch(i, words[o]);
            float packs[kOperands][kPack] = {};
#pragma unroll
            for (int o = 0; o < kOperands; ++o)
                if ((reads >> o & 1) && streams[o].base) streams[o].decode(words[o], packs[o]);
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
                float x[kOperands];
#pragma unroll
                for (int o = 0; o < kOperands; ++o) x[o] = packs[o][k];
                body(x);
#pragma unroll
                for (int o = 0; o < kOperands; ++o) packs[o][k] = x[o];
            }
#pragma unroll
            for (int o = 0; o < kOperands; ++o)
                if ((writes >> o & 1) && streams[o].base) streams[o].store(i, packs[o]);
        }
        if (lane >= loose) return;
        const int i = lane < head ? lane : n - loose + lane;
        float x[kOperands];
#pragma unroll
        for (int o = 0; o < kOperands; ++o) x[o] = (reads >> o & 1) && streams[o].base ? streams[o].load_one(i) : 0.0f;
        body(x);
#pragma unroll
        for (int o = 0; o < kOperands; ++o)
            if ((writes >> o & 1) && streams[o].base) streams[o].store_one(i, x[o]);
    }
};

// The compiler is told that a warp's threads agree on it: what depends on it is kept and computed once a warp.
__device__ int warp_of_block() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0); }

template <class T> __device__ T sum_of_warp(T x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
    return x;  // in lane 0
}

// The turn's sums, warp by warp in order. Two buffers: one is read while the next turn's sums are written to the other.
__device__ void write_partials(const Job& job, int64_t turn, const float* lanes, int buffer) {
    __shared__ float warps[2][kTurn][kSums];
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
        const float sum = sum_of_warp(lanes[s]);
        if (threadIdx.x % 32 == 0) warps[buffer][threadIdx.x / 32][s] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= kSums) return;
    double sum = 0;
#pragma unroll
    for (int w = 0; w < kTurn; ++w) sum += warps[buffer][w][threadIdx.x];
    job.partials[threadIdx.x * job.n_turns + turn] = sum;
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

template <class Rows> __device__ int64_t first_turn_of_group(const Rows& rows, const Job& job, int64_t group) {
    int64_t low = 0, high = job.n_rows;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (rows[middle].group() < group) low = middle + 1; else high = middle;
    }
    return low < job.n_rows ? (rows[low].first_chunk + kTurn - 1) / kTurn : job.n_turns;
}

template <class Rows> __device__ void combine(const Rows& rows, const Job& job) {
    __shared__ double warps[kTurn][kSums];
    for (int64_t group = 0; group < job.n_groups; ++group) {
        const int64_t begin = first_turn_of_group(rows, job, group), end = first_turn_of_group(rows, job, group + 1);
        double sums[kSums] = {};
#pragma unroll 4
        for (int64_t turn = begin + threadIdx.x; turn < end; turn += kThreads)
#pragma unroll
            for (int s = 0; s < kSums; ++s) sums[s] += __ldcg(job.partials + s * job.n_turns + turn);
        __syncthreads();
#pragma unroll
        for (int s = 0; s < kSums; ++s) {
            const double sum = sum_of_warp(sums[s]);
            if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][s] = sum;
        }
        __syncthreads();
        if (threadIdx.x >= kSums) continue;
        double sum = 0;
        for (int w = 0; w < kTurn; ++w) sum += warps[w][threadIdx.x];
        job.sums[group * kSums + threadIdx.x] = sum;
    }
    __syncthreads();
}

__device__ double constraint_of(const Job& job) {
    if (!job.constraint) return job.report[kConstraint];
    if (job.constraint_dtype == DType::f64) return *static_cast<const double*>(job.constraint);
    if (job.constraint_dtype == DType::f32) return *static_cast<const float*>(job.constraint);
    return to_float(*static_cast<const uint16_t*>(job.constraint), job.constraint_dtype);
}

template <class R, class Rows>
__global__ void __launch_bounds__(kThreads, kBlocks<R>.stats) stats_kernel(const __grid_constant__ Job job, const __grid_constant__ Rows rows, uint32_t* counter) {
    const int warp = warp_of_block();
    Coefficients<R> coefficients(job);
    int buffer = 0;
    for (int64_t turn = blockIdx.x; turn < job.n_turns; turn += gridDim.x, buffer ^= 1) {
        const int64_t chunk = turn * kTurn + warp;
        const Place at = place_of(rows, job, row_of(rows, job, chunk), chunk);
        float lanes[kSums] = {};
        if (at.begin < at.end) {
            const Row& row = rows[at.row];
            coefficients.move_to(row);
            Chunk(row, at).each(coefficients.rule.stats_reads(), 0, [&](float* x) {
                const Element<float> e = coefficients.rule.element(x);
                accumulate(e, x[kGrad], x[kConstraintGrad], lanes);
            });
        }
        write_partials(job, turn, lanes, buffer);
    }
    if (!last_block(counter)) return;
    combine(rows, job);
    if (threadIdx.x != 0) return;
    job.report[kConstraint] = constraint_of(job);
    if (job.solve) solve(job.sums, job.hyper, job.n_groups, job.control, job.report);
}

template <class R, class Rows>
__global__ void __launch_bounds__(kThreads, kBlocks<R>.apply) apply_kernel(const __grid_constant__ Job job, const __grid_constant__ Rows rows, uint32_t* counter) {
    if (job.report[kSkipped] != 0) return;  // every block reads the same flag, so none waits for another
    const float lambda = float(job.report[kLambda]), scale = float(job.report[kScale]);
    const int warp = warp_of_block();
    Coefficients<R> coefficients(job);
    for (int64_t done = blockIdx.x; done < job.n_turns; done += gridDim.x) {
        const int64_t turn = job.n_turns - 1 - done;  // backwards, to meet what the first pass left in cache
        const int64_t chunk = turn * kTurn + warp;
        const Place at = place_of(rows, job, row_of(rows, job, chunk), chunk);
        if (at.begin >= at.end) continue;
        const Row& row = rows[at.row];
        coefficients.move_to(row);
        Chunk(row, at).each(R::kReads, R::kWrites, [&](float* x) {
            const Element<float> e = coefficients.rule.element(x);
            coefficients.rule.step(x, e, lambda, scale);
        });
    }
    if (!job.counts_steps || !last_block(counter)) return;
    for (int64_t r = threadIdx.x; r < job.n_rows; r += kThreads)
        if (rows[r].step) *reinterpret_cast<float*>(rows[r].step) += 1.0f;
}

// As many blocks as fit the device at once; asked for once, since asking costs more than launching.
template <class Kernel> int resident_blocks(Kernel kernel, std::atomic<int>* known, int device) {
    if (device < kMostDevices && known[device] > 0) return known[device];
    int processors = 0, each = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device attribute");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0), "occupancy");
    const int blocks = processors * std::max(each, 1);
    if (device < kMostDevices) known[device] = blocks;
    return blocks;
}

std::atomic<int> blocks_limit{INT_MAX};

template <class Rows> using Kernel = void (*)(Job, Rows, uint32_t*);

template <class Rows, Kernel<Rows> kernel>
void launch(const Rows& rows, const Job& job, uint32_t* counter, int device, void* stream) {
    static std::atomic<int> known[kMostDevices];
    const int64_t most = std::min(resident_blocks(kernel, known, device), blocks_limit.load());
    const int64_t blocks = std::clamp<int64_t>(job.n_turns, 1, most);
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(job, rows, counter);
    check(cudaGetLastError(), "launch");
}

template <class Rows> void launch_stats(const Rows& rows, const Job& job, uint32_t* counter, int device, void* stream) {
    switch (job.rule) {
        case Rule::project: return launch<Rows, stats_kernel<ProjectRule, Rows>>(rows, job, counter, device, stream);
        case Rule::sgd: return launch<Rows, stats_kernel<SgdRule, Rows>>(rows, job, counter, device, stream);
        case Rule::adamw: return launch<Rows, stats_kernel<AdamWRule, Rows>>(rows, job, counter, device, stream);
    }
}

template <class Rows> void launch_apply(const Rows& rows, const Job& job, uint32_t* counter, int device, void* stream) {
    switch (job.rule) {
        case Rule::project: return launch<Rows, apply_kernel<ProjectRule, Rows>>(rows, job, counter, device, stream);
        case Rule::sgd: return launch<Rows, apply_kernel<SgdRule, Rows>>(rows, job, counter, device, stream);
        case Rule::adamw: return launch<Rows, apply_kernel<AdamWRule, Rows>>(rows, job, counter, device, stream);
    }
}

InArguments in_arguments(const Row* rows, int64_t n) {
    InArguments arguments;
    std::copy(rows, rows + n, arguments.rows);
    return arguments;
}

}  // namespace

int64_t rows_in_arguments() {
    static const int64_t rows = [] {
        int driver = 0;
        check(cudaDriverGetVersion(&driver), "driver version");
        return kArgumentBytes <= 4096 || driver >= 12010 ? kRowsInArguments : 0;
    }();
    return rows;
}

void limit_blocks(int blocks) { blocks_limit = std::max(blocks, 1); }

void run_stats(const Rows& rows, const Job& job, uint32_t* counter, int device, void* stream) {
    const DeviceGuard guard(device);
    if (job.n_rows <= rows_in_arguments()) launch_stats(in_arguments(rows.host, job.n_rows), job, counter, device, stream);
    else launch_stats(OnDevice{rows.device}, job, counter, device, stream);
}

void run_apply(const Rows& rows, const Job& job, uint32_t* counter, int device, void* stream) {
    const DeviceGuard guard(device);
    if (job.n_rows <= rows_in_arguments()) launch_apply(in_arguments(rows.host, job.n_rows), job, counter, device, stream);
    else launch_apply(OnDevice{rows.device}, job, counter, device, stream);
}

}  // namespace ux::cuda
