// What crosses the border from Python: for every tensor one row of pointers, and the chunks that all rows are cut into.
#pragma once
#include <cstdint>

// Always inlined: the same function is compiled for several instruction sets, and a linker that merged the copies could
// give an old processor the newest one's.
#if defined(__CUDACC__)
#define UX_HD __host__ __device__ __forceinline__
#else
#define UX_HD inline __attribute__((always_inline))
#endif

namespace ux {

enum class DType : uint8_t { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };  // f64: f1 alone, never an operand
enum class Rule : int { project = 0, sgd = 1, adamw = 2 };

enum Operand { kParam, kGrad, kConstraintGrad, kFirstMoment, kSecondMoment, kOperands };

// A chunk is the work of one warp, a tile that of one block or of one thread of the CPU. Partial sums are indexed by tile
// and combined in that order, so the result does not depend on how many threads or blocks shared the tiles.
constexpr int kChunksPerTile = 8;               // chunks
constexpr int64_t kMinChunk[] = {4096, 1024};  // elements, on the CPU and on a GPU; doubled until the tiles are few enough
constexpr int64_t kMaxTiles = 8192;   // 40 bytes of partial sums each: 320 KB, whatever the model's size

// How a GPU loads a row: all operands 16 bytes at a time, four floats or eight halves; or each in its own way.
enum class Loads : int { mixed = 0, floats = 1, halves = 2 };

// One tensor and everything that is stepped with it.
struct Row {
    int64_t data[kOperands];  // addresses; 0: the operand is absent and reads as zero
    int64_t step;             // address of the float32 step counter; 0: the rule keeps none
    int64_t numel;
    int64_t first_chunk;      // chunks of all the rows before this one; a group begins on a new tile
    int64_t tags;             // four bits of dtype for each operand; head from bit 24; loads from bit 28; group from bit 32

    UX_HD DType dtype(int operand) const { return static_cast<DType>((tags >> (4 * operand)) & 15); }
    UX_HD bool all_are(DType type) const {
        for (int o = 0; o < kOperands; ++o)
            if (data[o] && dtype(o) != type) return false;
        return true;
    }
    UX_HD int head() const { return static_cast<int>((tags >> 24) & 15); }  // elements before the first aligned one
    UX_HD Loads loads() const { return static_cast<Loads>((tags >> 28) & 15); }
    UX_HD int group() const { return static_cast<int>(tags >> 32); }
    UX_HD char* address(int operand, int64_t element) const {
        const int64_t width = dtype(operand) == DType::f32 ? 4 : 2;
        return data[operand] ? reinterpret_cast<char*>(data[operand]) + element * width : nullptr;
    }
};
static_assert(sizeof(Row) == 72, "rows are compared and copied as bytes");

// Everything one phase of one step needs, but for the rows, which travel beside it. Rows are sorted by group.
struct Job {
    Rule rule;
    DType constraint_dtype;
    bool solve;             // stats also solves the QP; false where a collective or a callable ψ stands in between
    bool counts_steps;      // some row has a step counter
    int64_t n_rows;
    int64_t n_tiles;
    int64_t chunk;          // elements
    int64_t n_groups;
    const void* constraint; // f1, one element; null: report[kConstraint] holds it
    const double* hyper;    // [n_groups, kHyper]
    const double* control;  // [kControl]
    double* partials;       // [kSums, n_turns]
    double* sums;           // [n_groups, kSums]
    double* report;         // [kReport]
};

// A chunk's elements [begin, end) of its row; none where a group's last tile is not full.
struct ChunkRange {
    int64_t row, begin, end;
};

// The row that holds a chunk is the last one that starts at or before it; an empty tensor shares its start with the next.
template <class Rows> UX_HD int64_t row_of(const Rows& rows, const Job& job, int64_t chunk) {
    int64_t low = 0, high = job.n_rows;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (rows[middle].first_chunk <= chunk) low = middle; else high = middle;
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
