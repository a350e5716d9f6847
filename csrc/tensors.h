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

enum class DType : uint8_t { f32 = 0, bf16 = 1, f16 = 2 };
enum class Rule : int { project = 0, sgd = 1, adamw = 2 };

enum Operand { kParam, kGrad, kConstraintGrad, kFirst, kSecond, kOperands };

// Elements of one unit of work. Partial sums are indexed by global chunk number and combined in that order, so the
// result does not depend on how many threads or blocks shared the chunks.
constexpr int64_t kChunk = 16384;

// One tensor and everything that is stepped with it. Mirrors unlearn_ext/ops.py: an int64 array of shape [rows, 9].
struct Row {
    int64_t data[kOperands];  // addresses; 0: the operand is absent and reads as zero
    int64_t step;             // address of the float32 step counter; 0: the rule keeps none
    int64_t numel;
    int64_t first_chunk;      // chunks of all the rows before this one
    int64_t tags;             // four bits of dtype for each operand, the group from bit 32 on

    UX_HD DType dtype(int operand) const { return static_cast<DType>((tags >> (4 * operand)) & 15); }
    UX_HD int group() const { return static_cast<int>(tags >> 32); }
    UX_HD void* address(int operand, int64_t element) const {
        const int64_t width = dtype(operand) == DType::f32 ? 4 : 2;
        return data[operand] ? reinterpret_cast<char*>(data[operand]) + element * width : nullptr;
    }
};
static_assert(sizeof(Row) == 9 * sizeof(int64_t), "ops.py fills rows of nine int64");

// The row that holds a chunk: the last one that starts at or before it. Empty tensors own no chunk and are never found.
UX_HD int64_t row_of_chunk(const Row* rows, int64_t n_rows, int64_t chunk) {
    int64_t low = 0, high = n_rows;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (rows[middle].first_chunk <= chunk) low = middle; else high = middle;
    }
    return low;
}

// Everything one phase of one step needs. `rows` are sorted by group.
struct Job {
    Rule rule;
    const Row* rows;
    int64_t n_rows;
    int64_t n_chunks;
    int64_t n_groups;
    const double* hyper;    // [n_groups, kHyper]
    const double* control;  // [kControl]
    double* partials;       // [n_chunks, kSums]
    double* sums;           // [n_groups, kSums]
    double* report;         // [kReport]
    bool solve;             // stats also solves the QP; false where a collective or a callable ψ stands in between
};

}  // namespace ux
