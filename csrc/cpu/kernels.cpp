// Compiled once for each instruction set (UX_ISA names it). Sixteen lanes everywhere and no contraction: every
// instruction set adds in the same order and gives the same bits.
#include "kernels.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ux {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef float HalfLanes __attribute__((vector_size(kLanes / 2 * sizeof(float))));
typedef double Wide __attribute__((vector_size(kLanes / 2 * sizeof(double))));

static inline Lanes root(Lanes x) {  // before the rules, which look for it
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

}  // namespace ux

#include "../rules.h"
#include "half.h"

namespace ux::cpu::UX_ISA {

namespace {

constexpr int64_t kTile = 1024;  // elements widened at a time: five float tiles stay in the first-level cache
constexpr int64_t kAhead = 256;  // elements

void widen_f16(const uint16_t* in, float* out, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
#endif
    for (; i < n; ++i) out[i] = from_f16(in[i]);
}

void narrow_f16(const float* in, uint16_t* out, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; ++i) out[i] = to_f16(in[i]);
}

alignas(64) const float kZeros[kLanes] = {};

// The operand as floats: in place where it is float already, else a widened copy.
const float* widen(const char* in, DType dtype, int64_t n, float* buffer) {
    const auto* half = reinterpret_cast<const uint16_t*>(in);
    if (dtype == DType::f32) return reinterpret_cast<const float*>(in);
    if (dtype == DType::f16) widen_f16(half, buffer, n);
    else for (int64_t i = 0; i < n; ++i) buffer[i] = from_bf16(half[i]);
    return buffer;
}

void narrow(const Row& row, int operand, int64_t begin, int64_t n, const float* buffer) {
    auto* half = reinterpret_cast<uint16_t*>(row.address(operand, begin));
    if (row.dtype(operand) == DType::bf16)
        for (int64_t i = 0; i < n; ++i) half[i] = to_bf16(buffer[i]);
    else
        narrow_f16(buffer, half, n);
}

template <class Rule> struct Tile {
    alignas(64) float buffers[kOperands][kTile];
    const float* in[kOperands];
    int64_t mask[kOperands];       // of the index: zero for an absent operand, which is kZeros over and over
    const char* ahead[kOperands];  // what is wanted next: further on, or the next tile where this one was widened
    int width[kOperands];

    void load(const Row& row, unsigned reads, int64_t begin, int64_t n) {
        for (int o = 0; o < kOperands; ++o) {
            const char* address = reads & bit(o) ? row.address(o, begin) : nullptr;
            const bool whole = row.dtype(o) == DType::f32;
            in[o] = address ? widen(address, row.dtype(o), n, buffers[o]) : kZeros;
            mask[o] = address ? -1 : 0;
            ahead[o] = address ? address + (whole ? 4 * kAhead : 2 * kTile) : reinterpret_cast<const char*>(kZeros);
            width[o] = address ? (whole ? 4 : 2) : 0;
        }
    }
    template <class F> void read(int64_t i, F* x) const {
        for (int o = 0; o < kOperands; ++o) memcpy(&x[o], in[o] + (i & mask[o]), sizeof(F));
    }
    // The processor fetches ahead by itself, but not across pages, and there are five streams.
    void prefetch(int64_t i) const {
        for (int o = 0; o < kOperands; ++o)
            if (Rule::kReads & bit(o)) __builtin_prefetch(ahead[o] + i * width[o]);
    }
};

// The coefficients, made anew only where the group or the step's number changes from one row to the next.
template <class Rule> class Coefficients {
  public:
    explicit Coefficients(const Job& job) : job_(job) {}

    const Rule& of(const Row& row) {
        const int key = row.group() << 1 | (row.data[kFirst] != 0);
        const float t = row.step ? *reinterpret_cast<const float*>(row.step) + 1.0f : 0.0f;
        if (key != key_ || t != t_) {
            rule_ = Rule(job_.hyper + row.group() * kHyper, row.data[kFirst] != 0, t);
            key_ = key, t_ = t;
        }
        return rule_;
    }

  private:
    const Job& job_;
    int key_ = -1;
    float t_ = 0;
    Rule rule_{job_.hyper, false, 1.0f};
};

// The sums of a turn, in lanes of double: float lanes are emptied into them once a tile.
struct WideSums {
    Wide lanes[kSums][2] = {};
    double tail[kSums] = {};

    void add(const Lanes* floats) {
        for (int s = 0; s < kSums; ++s) {
            HalfLanes halves[2];
            memcpy(halves, &floats[s], sizeof(Lanes));
            for (int h = 0; h < 2; ++h) lanes[s][h] += __builtin_convertvector(halves[h], Wide);
        }
    }
    double total(int s) const {
        double sum = tail[s];
        for (int h = 0; h < 2; ++h)
            for (int lane = 0; lane < kLanes / 2; ++lane) sum += lanes[s][h][lane];
        return sum;
    }
};

template <class Body> void each_tile(const Row* rows, const Job& job, int64_t turn, Body body) {
    int64_t row = row_of(rows, job, turn * kTurn);
    for (int64_t chunk = turn * kTurn; chunk < (turn + 1) * kTurn; ++chunk) {
        while (row + 1 < job.n_rows && rows[row + 1].first_chunk <= chunk) ++row;
        const Place at = place_of(rows, job, row, chunk);
        const int64_t tile = rows[row].all_float() ? job.chunk : kTile;
        for (int64_t begin = at.begin; begin < at.end; begin += tile)
            body(rows[row], begin, begin + tile < at.end ? tile : at.end - begin);
    }
}

template <class Rule> void stats_of(const Row* rows, const Job& job, int64_t turn) {
    Coefficients<Rule> coefficients(job);
    Tile<Rule> tile;
    WideSums sums;
    each_tile(rows, job, turn, [&](const Row& row, int64_t begin, int64_t n) {
        const Rule rule = coefficients.of(row);
        tile.load(row, rule.stats_reads(), begin, n);
        Lanes lanes[kSums] = {};
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            tile.prefetch(i);
            Lanes x[kOperands];
            tile.read(i, x);
            const Element<Lanes> e = rule.element(x);
            accumulate(e, x[kGrad], x[kConstraintGrad], lanes);
        }
        if (i > 0) sums.add(lanes);
        float tail[kSums] = {};
        for (; i < n; ++i) {
            float x[kOperands];
            tile.read(i, x);
            const Element<float> e = rule.element(x);
            accumulate(e, x[kGrad], x[kConstraintGrad], tail);
        }
        for (int s = 0; s < kSums; ++s) sums.tail[s] += tail[s];
    });
    for (int s = 0; s < kSums; ++s) job.partials[s * job.n_turns + turn] = sums.total(s);
}

template <class Rule> void apply_of(const Row* rows, const Job& job, int64_t turn) {
    const float lambda = float(job.report[kLambda]), scale = float(job.report[kScale]);
    Coefficients<Rule> coefficients(job);
    Tile<Rule> tile;
    each_tile(rows, job, turn, [&](const Row& row, int64_t begin, int64_t n) {
        const Rule rule = coefficients.of(row);
        tile.load(row, Rule::kReads, begin, n);
        float* out[kOperands] = {};
        for (int o = 0; o < kOperands; ++o)
            if ((Rule::kWrites & bit(o)) && row.data[o])
                out[o] = row.dtype(o) == DType::f32 ? reinterpret_cast<float*>(row.address(o, begin)) : tile.buffers[o];
        const auto advance = [&](int64_t i, auto zero) {
            using F = decltype(zero);
            F x[kOperands];
            tile.read(i, x);
            const Element<F> e = rule.element(x);
            rule.step(x, e, lambda, scale);
            for (int o = 0; o < kOperands; ++o)
                if ((Rule::kWrites & bit(o)) && out[o]) memcpy(out[o] + i, &x[o], sizeof(F));
        };
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) tile.prefetch(i), advance(i, Lanes{});
        for (; i < n; ++i) advance(i, 0.0f);
        for (int o = 0; o < kOperands; ++o)
            if (out[o] == tile.buffers[o]) narrow(row, o, begin, n, tile.buffers[o]);
    });
}

void stats(const Row* rows, const Job& job, int64_t turn) {
    switch (job.rule) {
        case Rule::project: return stats_of<ProjectRule>(rows, job, turn);
        case Rule::sgd: return stats_of<SgdRule>(rows, job, turn);
        case Rule::adamw: return stats_of<AdamWRule>(rows, job, turn);
    }
}

void apply(const Row* rows, const Job& job, int64_t turn) {
    switch (job.rule) {
        case Rule::project: return apply_of<ProjectRule>(rows, job, turn);
        case Rule::sgd: return apply_of<SgdRule>(rows, job, turn);
        case Rule::adamw: return apply_of<AdamWRule>(rows, job, turn);
    }
}

}  // namespace

extern const Kernels table;
#define UX_NAME_(isa) #isa
#define UX_NAME(isa) UX_NAME_(isa)
const Kernels table = {stats, apply, UX_NAME(UX_ISA)};

}  // namespace ux::cpu::UX_ISA
