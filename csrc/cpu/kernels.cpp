// Compiled once per instruction set (UX_ISA is its name). All use 16 lanes and no FMA contraction, so they add in the
// same order and give bitwise identical results.
#include "kernels.h"

#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ux {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef float Floats8 __attribute__((vector_size(kLanes / 2 * sizeof(float))));
typedef uint32_t Uint32Lanes __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Uint16Lanes __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef double Doubles8 __attribute__((vector_size(kLanes / 2 * sizeof(double))));

// Must be declared before rules.h, which calls it.
static inline Lanes square_root(Lanes x) {
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

}  // namespace ux

#include "../variant.h"
#include "half.h"

namespace ux::cpu::UX_ISA {

namespace {

constexpr int64_t kPrefetchDistance = 1024;  // bytes

#if defined(__F16C__)
void lanes_from_f16(const uint16_t* in, Lanes& x) {
    __m256 halves[2];
    for (int h = 0; h < 2; ++h)
        halves[h] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + h * kLanes / 2)));
    memcpy(&x, halves, sizeof(x));
}

void lanes_to_f16(const Lanes& x, uint16_t* out) {
    __m256 halves[2];
    memcpy(halves, &x, sizeof(x));
    for (int h = 0; h < 2; ++h)
        _mm_storeu_si128(
            reinterpret_cast<__m128i*>(out + h * kLanes / 2), _mm256_cvtps_ph(halves[h], _MM_FROUND_TO_NEAREST_INT));
}
#else
void lanes_from_f16(const uint16_t* in, Lanes& x) {
    for (int i = 0; i < kLanes; ++i) x[i] = from_f16(in[i]);
}

void lanes_to_f16(const Lanes& x, uint16_t* out) {
    for (int i = 0; i < kLanes; ++i) out[i] = to_f16(x[i]);
}
#endif

#if defined(__AVX512BW__)
// A bfloat16 is the upper half of a float, so one permutation of 16-bit words converts it. The compiler's own code
// needs several instructions.
struct Bf16Indices {
    alignas(64) uint16_t widen[2 * kLanes], narrow[2 * kLanes];
    constexpr Bf16Indices() : widen(), narrow() {
        for (int i = 0; i < kLanes; ++i) widen[2 * i + 1] = uint16_t(i), narrow[i] = uint16_t(2 * i + 1);
    }
};
constexpr Bf16Indices kBf16Indices;

void lanes_from_bf16(const uint16_t* in, Lanes& x) {
    const __m512i halves = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
    x = Lanes(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(kBf16Indices.widen), halves));
}

void lanes_to_bf16(const Lanes& x, uint16_t* out) {
    const __m512i bits = __m512i(x);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __mmask16 nan = _mm512_cmp_ps_mask(__m512(x), __m512(x), _CMP_UNORD_Q);
    __m512i rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    rounded = _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    const __m512i upper = _mm512_permutexvar_epi16(_mm512_load_si512(kBf16Indices.narrow), rounded);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(upper));
}
#else
void lanes_from_bf16(const uint16_t* in, Lanes& x) {
    Uint16Lanes halves;
    memcpy(&halves, in, sizeof(halves));
    const Uint32Lanes bits = __builtin_convertvector(halves, Uint32Lanes) << 16;
    memcpy(&x, &bits, sizeof(x));
}

void lanes_to_bf16(const Lanes& x, uint16_t* out) {
    Uint32Lanes bits;
    memcpy(&bits, &x, sizeof(x));
    const Uint32Lanes rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = Uint32Lanes{} + 0x7fc0;
    const Uint16Lanes halves = __builtin_convertvector(x == x ? rounded : nan, Uint16Lanes);
    memcpy(out, &halves, sizeof(halves));
}
#endif

// Load or store element i of an operand, or the kLanes elements from i on.
void load(const char* base, DType dtype, int64_t i, float& x) {
    const auto* half = reinterpret_cast<const uint16_t*>(base);
    x = dtype == DType::f32    ? reinterpret_cast<const float*>(base)[i]
        : dtype == DType::bf16 ? from_bf16(half[i])
                               : from_f16(half[i]);
}
void load(const char* base, DType dtype, int64_t i, Lanes& x) {
    const auto* half = reinterpret_cast<const uint16_t*>(base);
    if (dtype == DType::f32) memcpy(&x, base + 4 * i, sizeof(x));
    else if (dtype == DType::bf16) lanes_from_bf16(half + i, x);
    else lanes_from_f16(half + i, x);
}
void store(char* base, DType dtype, int64_t i, float x) {
    auto* half = reinterpret_cast<uint16_t*>(base);
    if (dtype == DType::f32) reinterpret_cast<float*>(base)[i] = x;
    else half[i] = dtype == DType::bf16 ? to_bf16(x) : to_f16(x);
}
void store(char* base, DType dtype, int64_t i, const Lanes& x) {
    auto* half = reinterpret_cast<uint16_t*>(base);
    if (dtype == DType::f32) memcpy(base + 4 * i, &x, sizeof(x));
    else if (dtype == DType::bf16) lanes_to_bf16(x, half + i);
    else lanes_to_f16(x, half + i);
}

alignas(64) const float kZeros[kLanes] = {};

// The operands of a chunk. kDType is their common dtype, known at compile time, or kMixed: look it up per operand.
constexpr DType kMixed = DType::f64;  // no operand is float64
template <class V, DType kDType> struct Chunk {
    const char* in[V::kOperands];
    char* out[V::kOperands];
    int64_t mask[V::kOperands];  // ANDed with the index: 0 for an absent operand, which then always reads kZeros
    DType dtypes[V::kOperands];

    Chunk(const Row<V::K>& row, unsigned reads, int64_t begin) {
        UX_UNROLL
        for (int o = 0; o < V::kOperands; ++o) {
            char* address = reads & bit(o) ? row.address(o, begin) : nullptr;
            in[o] = address ? address : reinterpret_cast<const char*>(kZeros);
            out[o] = V::kWrites & bit(o) ? address : nullptr;
            mask[o] = address ? -1 : 0;
            dtypes[o] = address ? row.dtype(o) : DType::f32;
        }
    }
    DType dtype(int o) const { return kDType == kMixed ? dtypes[o] : kDType; }
    template <class F> void read(int64_t i, F* x) const {
        UX_UNROLL
        for (int o = 0; o < V::kOperands; ++o)
            if (V::kReads & bit(o)) load(in[o], dtype(o), i & mask[o], x[o]);
    }
    template <class F> void write(int64_t i, const F* x) const {
        UX_UNROLL
        for (int o = 0; o < V::kOperands; ++o)
            if ((V::kWrites & bit(o)) && out[o]) store(out[o], dtype(o), i, x[o]);
    }
    // The hardware prefetcher does not cross page boundaries, and there are five operands or more.
    void prefetch(int64_t i) const {
        UX_UNROLL
        for (int o = 0; o < V::kOperands; ++o)
            if (V::kReads & bit(o))
                __builtin_prefetch(in[o] + (i & mask[o]) * (dtype(o) == DType::f32 ? 4 : 2) + kPrefetchDistance);
    }
};

// Caches the rule's coefficients; recomputes them only if the group or the step count differs from the previous row's.
template <class Rule> class RuleCache {
  public:
    explicit RuleCache(const Job& job) : job_(job) {}

    const Rule& get(const RowHead& row, bool has_first) {
        const int64_t key = row.group << 1 | int64_t(has_first);
        const float t = row.step ? *reinterpret_cast<const float*>(row.step) + 1.0f : 0.0f;
        if (key != key_ || t != t_) {
            rule_ = Rule(job_.hyper + row.group * kHyper, has_first, t);
            key_ = key, t_ = t;
        }
        return rule_;
    }

  private:
    const Job& job_;
    int64_t key_ = -1;
    float t_ = 0;
    Rule rule_{job_.hyper, false, 1.0f};
};

template <class V> Averages<V> averages_of(const Job& job, bool solved) {
    Averages<V> averages;
    for (int i = 0; i < V::K && V::kAveraged; ++i) averages.of[i] = average_of(job, i, solved);
    return averages;
}

// The sums of a tile in double; the float sums of each chunk are added to them.
template <int kCount> struct DoubleSums {
    Doubles8 lanes[kCount][2] = {};
    double tail[kCount] = {};

    void add(const Lanes* floats) {
        UX_UNROLL
        for (int s = 0; s < kCount; ++s) {
            Floats8 halves[2];
            memcpy(halves, &floats[s], sizeof(Lanes));
            for (int h = 0; h < 2; ++h) lanes[s][h] += __builtin_convertvector(halves[h], Doubles8);
        }
    }
    double total(int s) const {
        double sum = tail[s];
        for (int h = 0; h < 2; ++h)
            for (int lane = 0; lane < kLanes / 2; ++lane) sum += lanes[s][h][lane];
        return sum;
    }
};

template <int K, class Body> void for_each_chunk(const Row<K>* rows, const Job& job, int64_t tile, Body body) {
    int64_t row = row_of(rows, job, tile * kChunksPerTile);
    for (int64_t chunk = tile * kChunksPerTile; chunk < (tile + 1) * kChunksPerTile; ++chunk) {
        while (row + 1 < job.n_rows && rows[row + 1].first_chunk <= chunk) ++row;
        const ChunkRange range = range_of(rows, job, row, chunk);
        if (range.begin >= range.end) continue;
        if (rows[row].all_are(DType::f32)) body(rows[row], range, std::integral_constant<DType, DType::f32>{});
        else if (K == 1 && rows[row].all_are(DType::bf16))
            body(rows[row], range, std::integral_constant<DType, K == 1 ? DType::bf16 : kMixed>{});
        else body(rows[row], range, std::integral_constant<DType, kMixed>{});
    }
}

template <class V> void stats_of(const RowTable& table, const Job& job, int64_t tile) {
    using Rule = typename V::Rule;
    const Row<V::K>* rows = table.rows<V::K>();
    RuleCache<Rule> rule_cache(job);
    const Averages<V> averages = averages_of<V>(job, false);
    DoubleSums<V::kSums> sums;
    for_each_chunk(rows, job, tile, [&](const Row<V::K>& row, const ChunkRange& range, auto dtype) {
        const Rule rule = rule_cache.get(row, row.data[kFirstMoment] != 0);
        const Chunk<V, dtype> chunk(row, rule.stats_reads() | V::kConstraintReads, range.begin);
        const int64_t n = range.end - range.begin;
        const auto add_at = [&](int64_t i, auto zero, auto* totals) {
            using F = decltype(zero);
            F x[V::kOperands];
            chunk.read(i, x);
            const auto g = averages.apply(x);
            accumulate<F, V::K, V::kAveraged>(rule.template element<V::K>(x, g.a), x[kGrad], g, totals);
        };
        Lanes lanes[V::kSums] = {};
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) chunk.prefetch(i), add_at(i, Lanes{}, lanes);
        if (i > 0) sums.add(lanes);
        float tail[V::kSums] = {};
        for (; i < n; ++i) add_at(i, 0.0f, tail);
        for (int s = 0; s < V::kSums; ++s) sums.tail[s] += tail[s];
    });
    for (int s = 0; s < V::kSums; ++s) job.partials[s * job.n_tiles + tile] = sums.total(s);
}

template <class V> void apply_of(const RowTable& table, const Job& job, int64_t tile) {
    using Rule = typename V::Rule;
    const Row<V::K>* rows = table.rows<V::K>();
    float lambda[V::K] = {};
    for (int i = 0; i < job.n_constraints; ++i)
        lambda[i] = float(job.report[(1 + job.control_row[i]) * kReport + kLambda]);
    const float scale = float(job.report[kScale]);
    const bool restore = kRestores<Rule> && job.report[kSkipped] != 0;
    RuleCache<Rule> rule_cache(job);
    const Averages<V> averages = averages_of<V>(job, true);
    for_each_chunk(rows, job, tile, [&](const Row<V::K>& row, const ChunkRange& range, auto dtype) {
        const Rule rule = rule_cache.get(row, row.data[kFirstMoment] != 0);
        const Chunk<V, dtype> chunk(row, V::kReads, range.begin);
        const int64_t n = range.end - range.begin;
        const auto step_at = [&](int64_t i, auto zero) {
            using F = decltype(zero);
            F x[V::kOperands];
            chunk.read(i, x);
            if (restore) {
                x[kParam] = x[kFirstMoment];
            } else {
                const auto g = averages.apply(x);
                rule.step(x, rule.template element<V::K>(x, g.a), lambda, scale);
            }
            chunk.write(i, x);
        };
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) chunk.prefetch(i), step_at(i, Lanes{});
        for (; i < n; ++i) step_at(i, 0.0f);
    });
}

void stats(const RowTable& rows, const Job& job, int64_t tile) {
    visit_variant(job, [&](auto variant) { stats_of<decltype(variant)>(rows, job, tile); });
}

void apply(const RowTable& rows, const Job& job, int64_t tile) {
    visit_variant(job, [&](auto variant) { apply_of<decltype(variant)>(rows, job, tile); });
}

}  // namespace

extern const Kernels kernels;
#define UX_NAME_(isa) #isa
#define UX_NAME(isa) UX_NAME_(isa)
const Kernels kernels = {stats, apply, UX_NAME(UX_ISA)};

}  // namespace ux::cpu::UX_ISA
