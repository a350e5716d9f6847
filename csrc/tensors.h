// The input of the kernels: one row of pointers per tensor, and the partition of all rows into chunks and tiles.
#pragma once
#include <cstdint>

// Always inlined: these functions are compiled for several instruction sets. If the linker merged the copies, an old
// processor could execute instructions that it does not have.
#if defined(__CUDACC__)
#define UX_HD __host__ __device__ __forceinline__
#else
#define UX_HD inline __attribute__((always_inline))
#endif

namespace ux {

enum class DType : uint8_t { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };  // f64: only for f1, never for an operand
enum class Rule : int { project = 0, sgd = 1, adamw = 2 };

enum Operand { kParam, kGrad, kConstraintGrad, kFirstMoment, kSecondMoment, kOperands };

// A chunk is processed by one warp; a tile of eight chunks by one block on a GPU, or by one thread on the CPU. Partial
// sums are indexed by tile and added in that order, so the result does not depend on the number of threads or blocks.
constexpr int kChunksPerTile = 8;
// Elements per chunk, on the CPU and on a GPU; doubled until there are at most kMaxTiles tiles.
constexpr int64_t kMinChunk[] = {4096, 1024};
constexpr int64_t kMaxTiles = 8192;  // 40 bytes of partial sums each: 320 KB, for a model of any size

// How a GPU loads a row: all operands as aligned float32, all as aligned 16-bit floats, or depending on each operand.
enum class Loads : int { mixed = 0, floats = 1, halves = 2 };

// A parameter with its gradients and optimizer state.
struct Row {
    int64_t data[kOperands];  // addresses; 0: the operand is absent and counts as zero
    int64_t step;             // address of the float32 step counter; 0: none
    int64_t numel;
    int64_t first_chunk;  // index of the row's first chunk; every group begins with a new tile
    int64_t tags;         // bits 0-19: dtypes, 4 per operand; 24-27: head; 28-31: loads; 32-63: group

    UX_HD DType dtype(int operand) const { return static_cast<DType>((tags >> (4 * operand)) & 15); }
    UX_HD bool all_are(DType type) const {
        for (int o = 0; o < kOperands; ++o)
            if (data[o] && dtype(o) != type) return false;
        return true;
    }
    // Number of elements before the first aligned one.
    UX_HD int head() const { return static_cast<int>((tags >> 24) & 15); }
    UX_HD Loads loads() const { return static_cast<Loads>((tags >> 28) & 15); }
    UX_HD int group() const { return static_cast<int>(tags >> 32); }
    UX_HD char* address(int operand, int64_t element) const {
        const int64_t width = dtype(operand) == DType::f32 ? 4 : 2;
        return data[operand] ? reinterpret_cast<char*>(data[operand]) + element * width : nullptr;
    }
};
static_assert(sizeof(Row) == 72, "rows are compared and copied as bytes");

// Arguments of one phase of a step, except the rows, which are passed separately. Rows are sorted by group.
struct Job {
    Rule rule;
    DType constraint_dtype;
    bool solve;         // stats also solves the QP; false if an all-reduce or a callable ψ comes first
    bool counts_steps;  // whether any row has a step counter
    int64_t n_rows;
    int64_t n_tiles;
    int64_t chunk;  // elements per chunk
    int64_t n_groups;
    const void* constraint;  // f1, one element; null: f1 is in report[kConstraint]
    const double* hyper;     // [n_groups, kHyper]
    const double* control;   // [kControl]
    double* partials;        // [kSums, n_tiles]
    double* sums;            // [n_groups, kSums]
    double* report;          // [kReport]
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
