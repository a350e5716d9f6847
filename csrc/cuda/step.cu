#include "step.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../variant.h"
#include "pack.cuh"

namespace ux::cuda {

namespace {

constexpr int kThreads = 32 * kChunksPerTile;  // one warp per chunk of a tile
constexpr int kMaxDevices = 64;

// Minimum resident blocks per multiprocessor, so that enough loads are in flight: with fewer operands, more blocks.
struct MinBlocks {
    int stats, apply;
};
template <class V> constexpr MinBlocks min_blocks() {
    constexpr bool is_adamw = std::is_same<typename V::Rule, AdamWRule>::value;
    constexpr bool is_project = std::is_same<typename V::Rule, ProjectRule>::value;
    if (V::K == 8) return {1, 1};
    if (V::K > 1 || V::kAveraged) return {2, 2};
    return is_project ? MinBlocks{4, 4} : is_adamw ? MinBlocks{3, 2} : MinBlocks{4, 2};
}

// As many words as fit in the kernel arguments: 32 KB since CUDA 12.1, 4 KB before.
template <int kBytes> struct Words {
    static constexpr int kCapacity = (kBytes - 64) / int(sizeof(int64_t));
    int64_t words[kCapacity];
};

template <class Batch> __global__ void upload_kernel(const __grid_constant__ Batch batch, int n, int64_t* table) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) table[i] = batch.words[i];
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
    template <int K> __device__ void update(const Row<K>& row) {
        const int row_key = static_cast<int>(row.group) << 1 | (row.data[kFirstMoment] != 0);
        const float row_t = row.step ? *reinterpret_cast<const float*>(row.step) + 1.0f : 0.0f;
        if (row_key == key && row_t == t) return;
        rule = R(job.hyper + row.group * kHyper, row.data[kFirstMoment] != 0, row_t);
        key = row_key, t = row_t;
    }
};

// row_of for a warp: each lane compares one row, so a round trip to L2 tests 32 rows.
template <int K> __device__ int row_of_warp(const Row<K>* rows, const Job& job, int chunk) {
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

// Elements per pack; fewer with many constraints, so that all operands fit in registers.
template <class V> constexpr int kPackOf = V::K > 2 ? 4 : 8;

// The operands of a chunk. Lane l processes the packs l, l + 32, …, and the l-th of the single elements around them.
template <class V> struct Chunk {
    ChunkOperand operands[V::kOperands];
    Loads loads;
    int n;     // elements
    int head;  // single elements before the first pack

    __device__ Chunk(const Row<V::K>& row, const ChunkRange& range)
        : loads(row.loads()), n(static_cast<int>(range.end - range.begin)) {
        const int64_t first = range.begin ? 0 : row.head();  // all later chunks begin with a pack
        head = static_cast<int>(min(first, range.end - range.begin));
#pragma unroll
        for (int o = 0; o < V::kOperands; ++o)
            if (V::kReads >> o & 1) operands[o] = ChunkOperand(row.address(o, range.begin), row.dtype(o), head);
    }

    // Calls body(x) for each element, where x are its operands. `reads`, `writes`: masks of the operands that are
    // loaded before and stored after the call. With several constraints only rows of floats are processed in packs: the
    // code for every dtype of every operand would take minutes to compile.
    template <class Body> __device__ void for_each(unsigned reads, unsigned writes, Body body) const {
        int n_first = head, n_single = head + (n - head) % kMaxPack;
        if (loads == Loads::floats) for_each_pack<Loads::floats>(reads, writes, body);
        else if (V::K > 1) n_first = n_single = n;
        else if (loads == Loads::halves) for_each_pack<V::K == 1 ? Loads::halves : Loads::floats>(reads, writes, body);
        else for_each_pack<V::K == 1 ? Loads::mixed : Loads::floats>(reads, writes, body);
        for_each_single(n_first, n_single, reads, writes, body);
    }

    // `n_single` elements: the first `n_first` of the chunk and the last ones.
    template <class Body>
    __device__ void for_each_single(int n_first, int n_single, unsigned reads, unsigned writes, Body body) const {
        for (int k = threadIdx.x % 32; k < n_single; k += 32) {
            const int i = k < n_first ? k : n - n_single + k;
            float x[V::kOperands];
#pragma unroll
            for (int o = 0; o < V::kOperands; ++o) x[o] = uses(o, reads) ? operands[o].load_one(i) : 0.0f;
            body(x);
#pragma unroll
            for (int o = 0; o < V::kOperands; ++o)
                if (uses(o, writes)) operands[o].store_one(i, x[o]);
        }
    }

    __device__ bool uses(int operand, unsigned mask) const {
        return (V::kReads & mask) >> operand & 1 && operands[operand].base;
    }

    template <Loads kind, class Body> __device__ void for_each_pack(unsigned reads, unsigned writes, Body body) const {
        constexpr int kPack = kPackOf<V>;
        constexpr int kPacksInFlight = kind == Loads::halves ? 2 : 1;  // as many bytes in flight as for floats
        constexpr int kStride = 32 * kPack;
        const int end = head + (n - head) / kMaxPack * kMaxPack;
        for (int first = head + threadIdx.x % 32 * kPack; first + kPack <= end; first += kPacksInFlight * kStride) {
            uint32_t words[kPacksInFlight][V::kOperands][kPack] = {};
#pragma unroll
            for (int a = 0; a < kPacksInFlight; ++a)
#pragma unroll
                for (int o = 0; o < V::kOperands; ++o)
                    if (V::kReads >> o & 1) {
                        const int i = first + a * kStride;
                        operands[o].template fetch<kind, kPack>(i, uses(o, reads) && i + kPack <= end, words[a][o]);
                    }
#pragma unroll
            for (int a = 0; a < kPacksInFlight; ++a)
                if (first + a * kStride + kPack <= end) process_pack<kind>(first + a * kStride, words[a], writes, body);
        }
    }

    template <Loads kind, class Body>
    __device__ void process_pack(
        int i, const uint32_t (&words)[V::kOperands][kPackOf<V>], unsigned writes, Body body) const {
        constexpr int kPack = kPackOf<V>;
        float values[V::kOperands][kPack];
#pragma unroll
        for (int o = 0; o < V::kOperands; ++o)
            if (V::kReads >> o & 1) operands[o].template decode<kind, kPack>(words[o], values[o]);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            float x[V::kOperands];
#pragma unroll
            for (int o = 0; o < V::kOperands; ++o) x[o] = V::kReads >> o & 1 ? values[o][k] : 0.0f;
            body(x);
#pragma unroll
            for (int o = 0; o < V::kOperands; ++o) values[o][k] = x[o];
        }
#pragma unroll
        for (int o = 0; o < V::kOperands; ++o)
            if (uses(o, writes)) operands[o].template store<kind, kPack>(i, values[o]);
    }
};

// Each lane computes the weights of one constraint, since these take a few hundred instructions.
template <class V> __device__ Averages<V> averages_of(const Job& job, bool solved) {
    Averages<V> averages;
    if (!V::kAveraged) return averages;
    const Average own = average_of(job, threadIdx.x % 32, solved);
#pragma unroll
    for (int i = 0; i < V::K; ++i)
        averages.of[i] = {__shfl_sync(0xffffffffu, own.kept, i), __shfl_sync(0xffffffffu, own.fresh, i)};
    return averages;
}

// The shuffle tells the compiler that the value is uniform in a warp, so what depends on it is computed once per warp.
__device__ int warp_of_block() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0); }

template <class T> __device__ T sum_of_warp(T x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
    return x;  // valid in lane 0
}

// Shared memory of a block, the same for every variant: not in a template, where tests/emulation could not give each block
// memory of its own.
struct Shared {
    float tile_sums[2][kChunksPerTile][kMaxSums];
    double group_sums[kChunksPerTile][kMaxSums];
    Numbers numbers;
};
__device__ Shared& shared() {
    __shared__ Shared memory;
    return memory;
}

// Adds the warps' sums in order and writes those of the tile. Double buffering: one buffer is read while the next
// tile's sums are written to the other.
template <int kSums> __device__ void write_partials(const Job& job, int tile, const float* thread_sums, int buffer) {
    auto& warp_sums = shared().tile_sums;
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

template <int K> __device__ int64_t first_tile_of_group(const Row<K>* rows, const Job& job, int64_t group) {
    int64_t low = 0, high = job.n_rows;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (rows[middle].group < group) low = middle + 1;
        else high = middle;
    }
    return low < job.n_rows ? (rows[low].first_chunk + kChunksPerTile - 1) / kChunksPerTile : job.n_tiles;
}

// Adds the partial sums of every group, in the same order for any number of blocks.
template <int K> __device__ void combine(const Row<K>* rows, const Job& job) {
    constexpr int kSums = Sums{K}.count();
    auto& warp_sums = shared().group_sums;
    for (int64_t group = 0, end = 0; group < job.n_groups; ++group) {
        const int64_t begin = end;
        end = group + 1 < job.n_groups ? first_tile_of_group(rows, job, group + 1) : job.n_tiles;
        double sums[kSums] = {};
#pragma unroll(K == 1 ? 4 : 1)
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

__device__ double value_of(const void* address, DType dtype) {
    if (dtype == DType::f64) return *static_cast<const double*>(address);
    if (dtype == DType::f32) return *static_cast<const float*>(address);
    return to_float(*static_cast<const uint16_t*>(address), dtype);
}

// The numbers are loaded to shared memory in one round trip, which overlaps with the loads of the partial sums.
__device__ void load_numbers(const Job& job, Numbers& numbers) {
    const int n_rows = 1 + job.n_constraints;
    for (int i = threadIdx.x; i < n_rows * kControl; i += blockDim.x)
        numbers.control[i / kControl][i % kControl] =
            job.control[row_of_numbers(job, i / kControl) * kControl + i % kControl];
    for (int i = threadIdx.x; i < n_rows * kReport; i += blockDim.x) {
        const int row = i / kReport, column = i % kReport;
        const void* value = row && column == kConstraint ? job.value[row - 1] : nullptr;
        numbers.report[row][column] =
            value ? value_of(value, job.value_dtype[row - 1]) : job.report[row_of_numbers(job, row) * kReport + column];
    }
}

__device__ void store_numbers(const Job& job, const Numbers& numbers) {
    for (int i = threadIdx.x; i < (1 + job.n_constraints) * kReport; i += blockDim.x)
        job.report[row_of_numbers(job, i / kReport) * kReport + i % kReport] = numbers.report[i / kReport][i % kReport];
}

template <int K> __device__ void solve_in_one_thread(const Job& job, Numbers& numbers) {
    if (threadIdx.x == 0) {
        solve<K>(job, numbers);
        clear_absent(job);
    }
    __syncthreads();
    store_numbers(job, numbers);
}

// Not inlined: otherwise it takes registers from the loop of the kernel.
template <int K> __device__ __attribute__((noinline)) void finish(const Row<K>* rows, const Job& job) {
    Numbers& numbers = shared().numbers;
    load_numbers(job, numbers);
    combine<K>(rows, job);
    if (job.solve) solve_in_one_thread<K>(job, numbers);
    else store_numbers(job, numbers);
}

// The values of c are in the report already, perhaps averaged over processes.
template <int K> __global__ void solve_kernel(const __grid_constant__ Job job) {
    Numbers& numbers = shared().numbers;
    load_numbers(job, numbers);
    __syncthreads();
    solve_in_one_thread<K>(job, numbers);
}

template <class V>
__global__ void __launch_bounds__(kThreads, min_blocks<V>().stats)
    stats_kernel(const __grid_constant__ Job job, const Row<V::K>* rows, uint32_t* counter) {
    const int warp = warp_of_block();
    RuleCache<typename V::Rule> rule_cache(job);
    const Averages<V> averages = averages_of<V>(job, false);
    int buffer = 0;
    const int tiles = static_cast<int>(job.n_tiles);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, buffer ^= 1) {
        const int chunk = tile * kChunksPerTile + warp;
        const ChunkRange range = range_of(rows, job, row_of_warp(rows, job, chunk), chunk);
        float thread_sums[V::kSums] = {};
        if (range.begin < range.end) {
            const Row<V::K>& row = rows[range.row];
            rule_cache.update(row);
            Chunk<V>(row, range).for_each(rule_cache.rule.stats_reads() | V::kConstraintReads, 0, [&](float* x) {
                const auto g = averages.apply(x);
                const auto e = rule_cache.rule.template element<V::K>(x, g.a);
                accumulate<float, V::K, V::kAveraged>(e, x[kGrad], g, thread_sums);
            });
        }
        write_partials<V::kSums>(job, tile, thread_sums, buffer);
    }
    if (is_last_block(counter)) finish<V::K>(rows, job);
}

template <class V>
__global__ void __launch_bounds__(kThreads, min_blocks<V>().apply)
    apply_kernel(const __grid_constant__ Job job, const Row<V::K>* rows, uint32_t* counter) {
    const bool skipped = job.report[kSkipped] != 0;
    if (skipped && !kRestores<typename V::Rule>) return;  // all blocks read the same flag, so all return
    float lambda[V::K];
#pragma unroll
    for (int i = 0; i < V::K; ++i)
        lambda[i] = i < job.n_constraints ? float(job.report[(1 + job.control_row[i]) * kReport + kLambda]) : 0.0f;
    const float scale = float(job.report[kScale]);
    const int warp = warp_of_block();
    RuleCache<typename V::Rule> rule_cache(job);
    const Averages<V> averages = averages_of<V>(job, true);
    const int tiles = static_cast<int>(job.n_tiles);
    for (int done = blockIdx.x; done < tiles; done += gridDim.x) {
        const int tile = tiles - 1 - done;  // backwards: the end of the stats pass is still in L2
        const int chunk = tile * kChunksPerTile + warp;
        const ChunkRange range = range_of(rows, job, row_of_warp(rows, job, chunk), chunk);
        if (range.begin >= range.end) continue;
        const Row<V::K>& row = rows[range.row];
        rule_cache.update(row);
        Chunk<V>(row, range).for_each(V::kReads, V::kWrites, [&](float* x) {
            if (kRestores<typename V::Rule> && skipped) {
                x[kParam] = x[kFirstMoment];
                return;
            }
            const auto g = averages.apply(x);
            rule_cache.rule.step(x, rule_cache.rule.template element<V::K>(x, g.a), lambda, scale);
        });
    }
    if (skipped || !job.counts_steps || !is_last_block(counter)) return;
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

template <class V> using Kernel = void (*)(Job, const Row<V::K>*, uint32_t*);

template <class V, Kernel<V> kernel>
void launch(const void* rows, const Job& job, uint32_t* counter, int device, void* stream) {
    static std::atomic<int> cached[kMaxDevices];
    const DeviceGuard guard(device);
    const int64_t max_blocks = std::min(resident_blocks(kernel, cached, device), blocks_limit.load());
    const int64_t blocks = std::clamp<int64_t>(job.n_tiles, 1, max_blocks);
    start(kernel, static_cast<unsigned>(blocks), static_cast<cudaStream_t>(stream), job,
        static_cast<const Row<V::K>*>(rows), counter);
}

template <class Batch> void upload_in_batches(const std::vector<int64_t>& words, int64_t* table, cudaStream_t stream) {
    const auto n = static_cast<int64_t>(words.size());
    for (int64_t begin = 0; begin < n; begin += Batch::kCapacity) {
        const int count = static_cast<int>(std::min<int64_t>(Batch::kCapacity, n - begin));
        Batch batch;
        std::copy_n(words.data() + begin, count, batch.words);
        start(upload_kernel<Batch>, 1, stream, batch, count, table + begin);
    }
}

Job without_values(Job job) {
    std::fill(job.value, job.value + kMaxConstraints, nullptr);
    return job;
}

}  // namespace

void upload(const std::vector<int64_t>& words, int64_t* table, int device, void* stream) {
    const DeviceGuard guard(device);
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
#if CUDART_VERSION >= 12010
    static const bool large = [] {
        int driver = 0;
        check(cudaDriverGetVersion(&driver), "driver version");
        return driver >= 12010;
    }();
    if (large) return upload_in_batches<Words<32764>>(words, table, cuda_stream);
#endif
    upload_in_batches<Words<4096>>(words, table, cuda_stream);
}

void limit_blocks(int blocks) { blocks_limit = std::max(blocks, 1); }

void run_stats(const void* rows, const Job& job, uint32_t* counter, int device, void* stream) {
    visit_variant(job, [&](auto variant) {
        using V = decltype(variant);
        launch<V, stats_kernel<V>>(rows, job, counter, device, stream);
    });
}

void run_solve(const Job& job, int device, void* stream) {
    const DeviceGuard guard(device);
    visit_slots(job.slots, [&](auto slots) {
        start(solve_kernel<decltype(slots)::value>, 1, static_cast<cudaStream_t>(stream), without_values(job));
    });
}

void run_apply(const void* rows, const Job& job, uint32_t* counter, int device, void* stream) {
    visit_variant(job, [&](auto variant) {
        using V = decltype(variant);
        launch<V, apply_kernel<V>>(rows, job, counter, device, stream);
    });
}

}  // namespace ux::cuda
