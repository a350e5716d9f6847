// The input of the kernels: one row of pointers per tensor, and the partition of all rows into chunks and tiles.
#pragma once
#include <cstdint>
#include <vector>

// Always inlined: these functions are compiled for several instruction sets. If the linker merged the copies, an old
// processor could execute instructions that it does not have.
#if defined(__CUDACC__)
#define UX_HD __host__ __device__ __forceinline__
#else
#define UX_HD inline __attribute__((always_inline))
#endif
// For what one thread of a GPU computes at the end of stats: not inlined and with loops that are not unrolled, since it is
// compiled for each stats kernel; it was a third of the time to compile all of them.
#if defined(__CUDACC__)
#define UX_HD_CALL __host__ __device__ __noinline__ inline
#define UX_ROLLED _Pragma("unroll 1")
#else
#define UX_HD_CALL UX_HD
#define UX_ROLLED
#endif
#if defined(__CUDACC__)
#define UX_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define UX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define UX_UNROLL _Pragma("GCC unroll 32")
#endif

namespace ux {

enum class DType : uint8_t { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };  // f64: only for values of c, never for an operand
enum class Rule : int { project = 0, sgd = 1, adamw = 2, wrap = 3 };
constexpr int kRules = 4;

// The most constraints that the kernels have in one step. They are compiled for 1, 2, 4 and 8; between these, the
// operands that are missing count as zero.
constexpr int kMaxConstraints = 8;

// Operands of a row: these four, then ∇c and its moving average for each constraint.
enum Operand { kParam, kGrad, kFirstMoment, kSecondMoment, kStateOperands };
UX_HD constexpr int held(int constraint) { return kStateOperands + 2 * constraint; }
UX_HD constexpr int average(int constraint) { return held(constraint) + 1; }
UX_HD constexpr int operands_of(int constraints) { return held(constraints); }
constexpr int kMaxOperands = operands_of(kMaxConstraints);
UX_HD constexpr unsigned bit(int operand) { return 1u << operand; }

// A chunk is processed by one warp; a tile of eight chunks by one block on a GPU, or by one thread on the CPU. Partial
// sums are indexed by tile and added in that order, so the result does not depend on the number of threads or blocks.
constexpr int kChunksPerTile = 8;
// Elements per chunk, on the CPU and on a GPU; doubled until there are at most kMaxTiles tiles.
constexpr int64_t kMinChunk[] = {4096, 1024};
constexpr int64_t kMaxTiles = 8192;  // 40 bytes of partial sums each for one constraint: 320 KB, for any model

// How a GPU loads a row: all operands as aligned float32, all as aligned 16-bit floats, or depending on each operand.
enum class Loads : int { mixed = 0, floats = 1, halves = 2 };

// What all rows have, whatever the number of constraints.
struct RowHead {
    int64_t step;  // address of the float32 step counter; 0: none
    int64_t numel;
    int64_t first_chunk;  // index of the row's first chunk; every group begins with a new tile
    int64_t group;
    int64_t tags;  // bits 0-39: dtypes, 2 per operand; 40-43: head; 44-47: loads

    UX_HD DType dtype(int operand) const { return static_cast<DType>((tags >> (2 * operand)) & 3); }
    // Number of elements before the first aligned one.
    UX_HD int head() const { return static_cast<int>((tags >> 40) & 15); }
    UX_HD Loads loads() const { return static_cast<Loads>((tags >> 44) & 15); }
    UX_HD int64_t width(int operand) const { return dtype(operand) == DType::f32 ? 4 : 2; }
};

// A parameter with its gradients and optimizer state, for K constraints.
template <int K> struct Row : RowHead {
    int64_t data[operands_of(K)];  // addresses; 0: the operand is absent and counts as zero

    UX_HD bool all_are(DType type) const {
        bool all = true;
        for (int o = 0; o < operands_of(K); ++o) all &= !data[o] || dtype(o) == type;
        return all;
    }
    UX_HD char* address(int operand, int64_t element) const {
        return data[operand] ? reinterpret_cast<char*>(data[operand]) + element * width(operand) : nullptr;
    }
};

// The rows of one step on the host: Row<K> one after the other, K = `slots`, which is known at run time only.
class RowTable {
  public:
    static constexpr int64_t kHeadWords = sizeof(RowHead) / sizeof(int64_t);

    // Makes `n` rows of zeros.
    void reset(int slots, int64_t n) { slots_ = slots, words_.assign(n * width(), 0); }
    int slots() const { return slots_; }
    int operands() const { return operands_of(slots_); }
    int64_t width() const { return kHeadWords + operands(); }
    int64_t size() const { return static_cast<int64_t>(words_.size()) / width(); }

    RowHead& operator[](int64_t row) { return *reinterpret_cast<RowHead*>(words_.data() + row * width()); }
    const RowHead& operator[](int64_t row) const {
        return *reinterpret_cast<const RowHead*>(words_.data() + row * width());
    }
    int64_t* data(int64_t row) { return words_.data() + row * width() + kHeadWords; }
    const int64_t* data(int64_t row) const { return words_.data() + row * width() + kHeadWords; }
    const std::vector<int64_t>& words() const { return words_; }
    template <int K> const Row<K>* rows() const { return reinterpret_cast<const Row<K>*>(words_.data()); }

  private:
    int slots_ = 1;
    std::vector<int64_t> words_;
};

// Arguments of one phase of a step, except the rows, which are passed separately. Rows are sorted by group.
struct Job {
    Rule rule;
    int slots;          // constraints that the kernel is compiled for: 1, 2, 4 or 8
    int n_constraints;  // constraints that take part in this step, at most `slots`
    int n_controls;     // constraints of the optimizer; `control` and `report` have one row more
    bool averages;      // whether ∇c of any constraint has a moving average
    bool solve;         // stats also solves the QP; false if an all-reduce or a callable ψ comes first
    bool counts_steps;  // whether any row has a step counter
    int64_t n_rows;
    int64_t n_tiles;
    int64_t chunk;  // elements per chunk
    int64_t n_groups;
    int control_row[kMaxConstraints];  // index of each constraint among those of the optimizer
    DType value_dtype[kMaxConstraints];
    const void* value[kMaxConstraints];  // c, one element; null: it is in `report` already
    const double* hyper;                 // [n_groups, kHyper]
    const double* control;               // [1 + n_controls, kControl]
    double* partials;                    // [sums, n_tiles]
    double* sums;                        // [n_groups, sums]
    double* report;                      // [1 + n_controls, kReport]
};

// The elements [begin, end) of a row that belong to a chunk; empty for the unused chunks of a group's last tile.
struct ChunkRange {
    int64_t row, begin, end;
};

// The row of a chunk: the last one whose first chunk is not after it. An empty tensor has the same first chunk as the
// next row.
template <class Rows> UX_HD int64_t row_of(const Rows& rows, const Job& job, int64_t chunk) {
    int64_t low = 0, high = job.n_rows;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (rows[middle].first_chunk <= chunk) low = middle;
        else high = middle;
    }
    return low;
}

template <class Rows> UX_HD ChunkRange range_of(const Rows& rows, const Job& job, int64_t row, int64_t chunk) {
    const int64_t index = chunk - rows[row].first_chunk, numel = rows[row].numel;
    const int64_t begin = index == 0 ? 0 : rows[row].head() + index * job.chunk;
    const int64_t end = rows[row].head() + (index + 1) * job.chunk;
    return {row, begin, end < numel ? end : numel};
}

}  // namespace ux
