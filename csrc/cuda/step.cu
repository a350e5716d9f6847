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

constexpr int kThreads = 32 * kChunksPerTile;  // one warp per chunk of a tile
constexpr int kMaxDevices = 64;

// Minimum resident blocks per multiprocessor, so that enough loads are in flight: with fewer operands, more blocks.
struct MinBlocks {
    int stats, apply;
};
template <class R> constexpr MinBlocks kMinBlocks{4, 4};
template <> constexpr MinBlocks kMinBlocks<SgdRule>{4, 2};
template <> constexpr MinBlocks kMinBlocks<AdamWRule>{3, 2};

// As many rows as fit in the kernel arguments: 32 KB since CUDA 12.1, 4 KB before.
template <int kBytes> struct RowBatch {
    static constexpr int kCapacity = (kBytes - 64) / int(sizeof(Row));
    Row rows[kCapacity];
};

template <class Batch> __global__ void upload_kernel(const __grid_constant__ Batch batch, int n, Row* table) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) table[i] = batch.rows[i];
}

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("unlearn_ext, CUDA ") + what + ": " + cudaGetErrorString(error));
}

// kernel<<<blocks, kThreads, 0, stream>>>(arguments...) in plain C++, which tests/emulation compiles without nvcc.
template <class... Parameters>
void start(void (*kernel)(Parameters...), unsigned blocks, cudaStream_t stream, Parameters... arguments) {
    void* addresses[] = {&arguments...};
    cudaLaunchKernel(kernel, blocks, kThreads, addresses, 0, stream);
    check(cudaGetLastError(), "launch");
}

class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&previous_), "cudaGetDevice");
        if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != previous_;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }

  private:
    int previous_ = 0;
    bool changed_ = false;
};

// Caches the rule's coefficients for a warp; recomputes them only if the group or the step count differs from the
// previous chunk's.
template <class R> struct RuleCache {
    const Job& job;
    int key = -1;
    float t = 0;
    R rule;

    __device__ explicit RuleCache(const Job& j) : job(j), rule(j.hyper, false, 1.0f) {}
    __device__ void update(const Row& row) {
        const int row_key = row.group() << 1 | (row.data[kFirstMoment] != 0);
        const float row_t = row.step ? *reinterpret_cast<const float*>(row.step) + 1.0f : 0.0f;
        if (row_key == key && row_t == t) return;
        rule = R(job.hyper + row.group() * kHyper, row.data[kFirstMoment] != 0, row_t);
        key = row_key, t = row_t;
    }
};

// row_of for a warp: each lane compares one row, so a round trip to L2 tests 32 rows.
__device__ int row_of_warp(const Row* rows, const Job& job, int chunk) {
    int low = 0, n = static_cast<int>(job.n_rows);
    while (n > 1) {
        const int stride = (n + 31) / 32, offset = threadIdx.x % 32 * stride;
        const bool starts_before = offset < n && rows[low + offset].first_chunk <= chunk;
        const int last = (31 - __clz(__ballot_sync(0xffffffffu, starts_before) | 1u)) * stride;
        low += last;
        n = min(stride, n - last);
    }
    return low;
}

// The operands of a chunk. Lane l processes the packs l, l + 32, …, and the l-th of the single elements around them.
struct Chunk {
    ChunkOperand operands[kOperands];
    Loads loads;
    int n;         // elements
    int head;      // single elements before the first pack
    int n_single;  // single elements before the first and after the last pack

    __device__ Chunk(const Row& row, const ChunkRange& range)
        : operands{{row.address(0, range.begin), row.dtype(0), head_of(row, range)},
              {row.address(1, range.begin), row.dtype(1), head_of(row, range)},
              {row.address(2, range.begin), row.dtype(2), head_of(row, range)},
              {row.address(3, range.begin), row.dtype(3), head_of(row, range)},
              {row.address(4, range.begin), row.dtype(4), head_of(row, range)}},
          loads(row.loads()), n(static_cast<int>(range.end - range.begin)), head(head_of(row, range)) {
        n_single = head + (n - head) % kPack;
    }
    static __device__ int head_of(const Row& row, const ChunkRange& range) {
        const int64_t head = range.begin ? 0 : row.head();  // all later chunks begin with a pack
        return static_cast<int>(min(head, range.end - range.begin));
    }

    // Calls body(x) for each element, where x are its operands. `reads`, `writes`: masks of the operands that are
    // loaded before and stored after the call.
    template <class R, class Body> __device__ void for_each(unsigned reads, unsigned writes, Body body) const {
        if (loads == Loads::floats) for_each_pack<R, Loads::floats>(reads, writes, body);
        else if (loads == Loads::halves) for_each_pack<R, Loads::halves>(reads, writes, body);
        else for_each_pack<R, Loads::mixed>(reads, writes, body);
        const int lane = threadIdx.x % 32;
        if (lane >= n_single) return;
        const int i = lane < head ? lane : n - n_single + lane;
        float x[kOperands];
#pragma unroll
        for (int o = 0; o < kOperands; ++o) x[o] = uses(o, reads) ? operands[o].load_one(i) : 0.0f;
        body(x);
#pragma unroll
        for (int o = 0; o < kOperands; ++o)
            if (uses(o, writes)) operands[o].store_one(i, x[o]);
    }

    __device__ bool uses(int operand, unsigned mask) const { return (mask >> operand & 1) && operands[operand].base; }

    template <class R, Loads kind, class Body>
    __device__ void for_each_pack(unsigned reads, unsigned writes, Body body) const {
        constexpr int kPacksInFlight = kind == Loads::halves ? 2 : 1;  // as many bytes in flight as for floats
        constexpr int kStride = 32 * kPack;
        for (int first = head + threadIdx.x % 32 * kPack; first + kPack <= n; first += kPacksInFlight * kStride) {
            uint32_t words[kPacksInFlight][kOperands][kPack] = {};
#pragma unroll
            for (int a = 0; a < kPacksInFlight; ++a)
#pragma unroll
                for (int o = 0; o < kOperands; ++o)
                    if (R::kReads >> o & 1) {
                        const int i = first + a * kStride;
                        operands[o].template fetch<kind>(i, uses(o, reads) && i + kPack <= n, words[a][o]);
                    }
#pragma unroll
            for (int a = 0; a < kPacksInFlight; ++a)
                if (first + a * kStride + kPack <= n) process_pack<kind>(first + a * kStride, words[a], writes, body);
        }
    }

    template <Loads kind, class Body>
    __device__ void process_pack(int i, const uint32_t (&words)[kOperands][kPack], unsigned writes, Body body) const {
        float values[kOperands][kPack];
#pragma unroll
        for (int o = 0; o < kOperands; ++o) operands[o].template decode<kind>(words[o], values[o]);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            float x[kOperands];
#pragma unroll
            for (int o = 0; o < kOperands; ++o) x[o] = values[o][k];
            body(x);
#pragma unroll
            for (int o = 0; o < kOperands; ++o) values[o][k] = x[o];
        }
#pragma unroll
        for (int o = 0; o < kOperands; ++o)
            if (uses(o, writes)) operands[o].template store<kind>(i, values[o]);
    }
};

// The shuffle tells the compiler that the value is uniform in a warp, so what depends on it is computed once per warp.
__device__ int warp_of_block() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0); }

template <class T> __device__ T sum_of_warp(T x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
    return x;  // valid in lane 0
}

// Adds the warps' sums in order and writes those of the tile. Double buffering: one buffer is read while the next
// tile's sums are written to the other.
__device__ void write_partials(const Job& job, int tile, const float* thread_sums, int buffer) {
    __shared__ float warp_sums[2][kChunksPerTile][kSums];
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
        const float sum = sum_of_warp(thread_sums[s]);
        if (threadIdx.x % 32 == 0) warp_sums[buffer][threadIdx.x / 32][s] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= kSums) return;
    double sum = 0;
#pragma unroll
    for (int w = 0; w < kChunksPerTile; ++w) sum += warp_sums[buffer][w][threadIdx.x];
    job.partials[threadIdx.x * job.n_tiles + tile] = sum;
}

// True in the block that finishes last, which can then see the writes of all other blocks.
__device__ bool is_last_block(uint32_t* counter) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();  // for the whole block: the barrier made its writes visible to this thread
        last = atomicAdd(counter, 1u) == gridDim.x - 1;
        if (last) *counter = 0;  // for the next launch or graph replay
        __threadfence();
    }
    __syncthreads();
    return last;
}

__device__ int64_t first_tile_of_group(const Row* rows, const Job& job, int64_t group) {
    int64_t low = 0, high = job.n_rows;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (rows[middle].group() < group) low = middle + 1;
        else high = middle;
    }
    return low < job.n_rows ? (rows[low].first_chunk + kChunksPerTile - 1) / kChunksPerTile : job.n_tiles;
}

__device__ void combine(const Row* rows, const Job& job) {
    __shared__ double warp_sums[kChunksPerTile][kSums];
    for (int64_t group = 0, end = 0; group < job.n_groups; ++group) {
        const int64_t begin = end;
        end = group + 1 < job.n_groups ? first_tile_of_group(rows, job, group + 1) : job.n_tiles;
        double sums[kSums] = {};
#pragma unroll 4
        for (int64_t tile = begin + threadIdx.x; tile < end; tile += kThreads)
#pragma unroll
            for (int s = 0; s < kSums; ++s) sums[s] += __ldcg(job.partials + s * job.n_tiles + tile);
        __syncthreads();
#pragma unroll
        for (int s = 0; s < kSums; ++s) {
            const double sum = sum_of_warp(sums[s]);
            if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32][s] = sum;
        }
        __syncthreads();
        if (threadIdx.x >= kSums) continue;
        double sum = 0;
        for (int w = 0; w < kChunksPerTile; ++w) sum += warp_sums[w][threadIdx.x];
        job.sums[group * kSums + threadIdx.x] = sum;
    }
    __syncthreads();
}

__device__ double constraint_of(const Job& job) {
    if (job.constraint_dtype == DType::f64) return *static_cast<const double*>(job.constraint);
    if (job.constraint_dtype == DType::f32) return *static_cast<const float*>(job.constraint);
    return to_float(*static_cast<const uint16_t*>(job.constraint), job.constraint_dtype);
}

// Control and report are loaded to shared memory in one round trip, which overlaps with the loads of the partial sums.
__device__ void finish(const Row* rows, const Job& job) {
    __shared__ double control[kControl], report[kReport];
    const int i = threadIdx.x;
    if (i < kControl) control[i] = job.control[i];
    if (i < kReport) report[i] = i == kConstraint && job.constraint ? constraint_of(job) : job.report[i];
    combine(rows, job);
    if (i == 0 && job.solve) solve(job.sums, job.hyper, job.n_groups, control, report);
    __syncthreads();
    if (i < kReport) job.report[i] = report[i];
}

template <class R>
__global__ void __launch_bounds__(kThreads, kMinBlocks<R>.stats)
    stats_kernel(const __grid_constant__ Job job, const Row* rows, uint32_t* counter) {
    const int warp = warp_of_block();
    RuleCache<R> rule_cache(job);
    int buffer = 0;
    const int tiles = static_cast<int>(job.n_tiles);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, buffer ^= 1) {
        const int chunk = tile * kChunksPerTile + warp;
        const ChunkRange range = range_of(rows, job, row_of_warp(rows, job, chunk), chunk);
        float thread_sums[kSums] = {};
        if (range.begin < range.end) {
            const Row& row = rows[range.row];
            rule_cache.update(row);
            Chunk(row, range).for_each<R>(rule_cache.rule.stats_reads(), 0, [&](float* x) {
                const Element<float> e = rule_cache.rule.element(x);
                accumulate(e, x[kGrad], x[kConstraintGrad], thread_sums);
            });
        }
        write_partials(job, tile, thread_sums, buffer);
    }
    if (is_last_block(counter)) finish(rows, job);
}

template <class R>
__global__ void __launch_bounds__(kThreads, kMinBlocks<R>.apply)
    apply_kernel(const __grid_constant__ Job job, const Row* rows, uint32_t* counter) {
    if (job.report[kSkipped] != 0) return;  // all blocks read the same flag, so all return
    const float lambda = float(job.report[kLambda]), scale = float(job.report[kScale]);
    const int warp = warp_of_block();
    RuleCache<R> rule_cache(job);
    const int tiles = static_cast<int>(job.n_tiles);
    for (int done = blockIdx.x; done < tiles; done += gridDim.x) {
        const int tile = tiles - 1 - done;  // backwards: the end of the stats pass is still in L2
        const int chunk = tile * kChunksPerTile + warp;
        const ChunkRange range = range_of(rows, job, row_of_warp(rows, job, chunk), chunk);
        if (range.begin >= range.end) continue;
        const Row& row = rows[range.row];
        rule_cache.update(row);
        Chunk(row, range).for_each<R>(R::kReads, R::kWrites, [&](float* x) {
            const Element<float> e = rule_cache.rule.element(x);
            rule_cache.rule.step(x, e, lambda, scale);
        });
    }
    if (!job.counts_steps || !is_last_block(counter)) return;
    for (int64_t r = threadIdx.x; r < job.n_rows; r += kThreads)
        if (rows[r].step) *reinterpret_cast<float*>(rows[r].step) += 1.0f;
}

// Number of blocks that can be resident on the device. Cached, since the query takes longer than a launch.
template <class Kernel> int resident_blocks(Kernel kernel, std::atomic<int>* cached, int device) {
    if (device < kMaxDevices && cached[device] > 0) return cached[device];
    int processors = 0, per_processor = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device attribute");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0), "occupancy");
    const int blocks = processors * std::max(per_processor, 1);
    if (device < kMaxDevices) cached[device] = blocks;
    return blocks;
}

std::atomic<int> blocks_limit{INT_MAX};

using Kernel = void (*)(Job, const Row*, uint32_t*);

template <Kernel kernel> void launch(const Row* rows, const Job& job, uint32_t* counter, int device, void* stream) {
    static std::atomic<int> cached[kMaxDevices];
    const DeviceGuard guard(device);
    const int64_t max_blocks = std::min(resident_blocks(kernel, cached, device), blocks_limit.load());
    const int64_t blocks = std::clamp<int64_t>(job.n_tiles, 1, max_blocks);
    start(kernel, static_cast<unsigned>(blocks), static_cast<cudaStream_t>(stream), job, rows, counter);
}

template <class Batch> void upload_in_batches(const Row* rows, int64_t n, Row* table, cudaStream_t stream) {
    for (int64_t begin = 0; begin < n; begin += Batch::kCapacity) {
        const int count = static_cast<int>(std::min<int64_t>(Batch::kCapacity, n - begin));
        Batch batch;
        std::copy(rows + begin, rows + begin + count, batch.rows);
        start(upload_kernel<Batch>, 1, stream, batch, count, table + begin);
    }
}

}  // namespace

void upload(const Row* rows, int64_t n, Row* table, int device, void* stream) {
    const DeviceGuard guard(device);
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
#if CUDART_VERSION >= 12010
    static const bool large = [] {
        int driver = 0;
        check(cudaDriverGetVersion(&driver), "driver version");
        return driver >= 12010;
    }();
    if (large) return upload_in_batches<RowBatch<32764>>(rows, n, table, cuda_stream);
#endif
    upload_in_batches<RowBatch<4096>>(rows, n, table, cuda_stream);
}

void limit_blocks(int blocks) { blocks_limit = std::max(blocks, 1); }

void run_stats(const Row* rows, const Job& job, uint32_t* counter, int device, void* stream) {
    visit(job.rule,
        [&](auto type) { launch<stats_kernel<typename decltype(type)::type>>(rows, job, counter, device, stream); });
}

void run_apply(const Row* rows, const Job& job, uint32_t* counter, int device, void* stream) {
    visit(job.rule,
        [&](auto type) { launch<apply_kernel<typename decltype(type)::type>>(rows, job, counter, device, stream); });
}

}  // namespace ux::cuda
