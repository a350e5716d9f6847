// Compiled once for each instruction set (UX_ISA names it). Sixteen lanes everywhere and no contraction: every
// instruction set adds in the same order and gives the same bits.
#include "kernels.h"

#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ux {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

static inline Lanes root(Lanes x) {  // before the rules, which look for it
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

}  // namespace ux

#include "../rules.h"

namespace ux::cpu::UX_ISA {

namespace {

constexpr int64_t kTile = 1024;  // elements converted at a time: five float tiles stay in the first-level cache

float from_bf16(uint16_t h) {
    const uint32_t bits = uint32_t(h) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : uint16_t(rounded);
}

// Half precision without the processor's help: exact, by way of float's own rounding.
float from_f16(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, body = h & 0x7fff;
    uint32_t bits = body >= 0x7c00 ? 0x7f800000 | (body << 13) : body << 13;
    float x;
    memcpy(&x, &bits, 4);
    if (body < 0x7c00) x *= 0x1p112f;
    memcpy(&bits, &x, 4);
    bits |= sign;
    memcpy(&x, &bits, 4);
    return x;
}

uint16_t to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
    if (bits < 0x38800000) {                       // a subnormal half: let float addition round it
        float small;
        memcpy(&small, &bits, 4);
        small += 0.5f;
        memcpy(&bits, &small, 4);
        return sign | uint16_t(bits - 0x3f000000);
    }
    bits += 0xfff + ((bits >> 13) & 1);
    return sign | uint16_t((bits - 0x38000000) >> 13);
}

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

alignas(64) const float kZeros[kTile] = {};

// The operand as floats: in place where it is float already, else a widened copy.
const float* widen(const Row& row, int operand, int64_t begin, int64_t n, float* buffer) {
    const void* in = row.address(operand, begin);
    if (!in) return kZeros;
    const auto* half = static_cast<const uint16_t*>(in);
    switch (row.dtype(operand)) {
        case DType::f32: return static_cast<const float*>(in);
        case DType::bf16: for (int64_t i = 0; i < n; ++i) buffer[i] = from_bf16(half[i]); return buffer;
        case DType::f16: widen_f16(half, buffer, n); return buffer;
    }
    return kZeros;
}

void narrow(const Row& row, int operand, int64_t begin, int64_t n, const float* buffer) {
    auto* half = static_cast<uint16_t*>(row.address(operand, begin));
    if (row.dtype(operand) == DType::bf16)
        for (int64_t i = 0; i < n; ++i) half[i] = to_bf16(buffer[i]);
    else
        narrow_f16(buffer, half, n);
}

template <class Rule> struct Tile {
    alignas(64) float buffers[kOperands][kTile];
    const float* in[kOperands];

    void load(const Row& row, int64_t begin, int64_t n) {
        for (int o = 0; o < kOperands; ++o)
            in[o] = (Rule::kReads & bit(o)) ? widen(row, o, begin, n, buffers[o]) : kZeros;
    }
    template <class F> void read(int64_t i, F* x) const {
        for (int o = 0; o < kOperands; ++o) memcpy(&x[o], in[o] + i, sizeof(F));
    }
};

struct Place { const Row& row; int64_t begin, end; };

Place place_of(const Job& job, int64_t chunk) {
    const Row& row = job.rows[row_of_chunk(job.rows, job.n_rows, chunk)];
    const int64_t begin = (chunk - row.first_chunk) * kChunk;
    return {row, begin, begin + kChunk < row.numel ? begin + kChunk : row.numel};
}

template <class Rule> void stats_of(const Job& job, int64_t chunk) {
    const Place at = place_of(job, chunk);
    const Rule rule(job.hyper + at.row.group() * kHyper, at.row);
    double* out = job.partials + chunk * kSums;
    for (int s = 0; s < kSums; ++s) out[s] = 0;
    Tile<Rule> tile;
    for (int64_t begin = at.begin; begin < at.end; begin += kTile) {
        const int64_t n = begin + kTile < at.end ? kTile : at.end - begin;
        tile.load(at.row, begin, n);
        Lanes lanes[kSums] = {};
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            Lanes x[kOperands];
            tile.read(i, x);
            const Element<Lanes> e = rule.element(x);
            accumulate(e, x[kGrad], x[kConstraintGrad], lanes);
        }
        float tail[kSums] = {};
        for (; i < n; ++i) {
            float x[kOperands];
            tile.read(i, x);
            const Element<float> e = rule.element(x);
            accumulate(e, x[kGrad], x[kConstraintGrad], tail);
        }
        for (int s = 0; s < kSums; ++s) {
            double sum = tail[s];
            for (int lane = 0; lane < kLanes; ++lane) sum += lanes[s][lane];
            out[s] += sum;
        }
    }
}

template <class Rule> void apply_of(const Job& job, int64_t chunk) {
    const Place at = place_of(job, chunk);
    const Rule rule(job.hyper + at.row.group() * kHyper, at.row);
    const float lambda = float(job.report[kLambda]), scale = float(job.report[kScale]);
    Tile<Rule> tile;
    for (int64_t begin = at.begin; begin < at.end; begin += kTile) {
        const int64_t n = begin + kTile < at.end ? kTile : at.end - begin;
        tile.load(at.row, begin, n);
        float* out[kOperands] = {};
        for (int o = 0; o < kOperands; ++o) {
            if (!(Rule::kWrites & bit(o)) || !at.row.data[o]) continue;
            void* address = at.row.address(o, begin);
            out[o] = at.row.dtype(o) == DType::f32 ? static_cast<float*>(address) : tile.buffers[o];
        }
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
        for (; i + kLanes <= n; i += kLanes) advance(i, Lanes{});
        for (; i < n; ++i) advance(i, 0.0f);
        for (int o = 0; o < kOperands; ++o)
            if (out[o] == tile.buffers[o]) narrow(at.row, o, begin, n, tile.buffers[o]);
    }
}

void stats(const Job& job, int64_t chunk) {
    switch (job.rule) {
        case Rule::project: return stats_of<ProjectRule>(job, chunk);
        case Rule::sgd: return stats_of<SgdRule>(job, chunk);
        case Rule::adamw: return stats_of<AdamWRule>(job, chunk);
    }
}

void apply(const Job& job, int64_t chunk) {
    switch (job.rule) {
        case Rule::project: return apply_of<ProjectRule>(job, chunk);
        case Rule::sgd: return apply_of<SgdRule>(job, chunk);
        case Rule::adamw: return apply_of<AdamWRule>(job, chunk);
    }
}

}  // namespace

extern const Kernels table;
#define UX_NAME_(isa) #isa
#define UX_NAME(isa) UX_NAME_(isa)
const Kernels table = {stats, apply, UX_NAME(UX_ISA)};

}  // namespace ux::cpu::UX_ISA
