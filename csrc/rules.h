// The mathematics of a step on one element, shared by all devices: what it adds to the sums, and its update. `F` is float,
// or a vector of floats on the CPU; `K` the number of constraints. solve.h says how λ follows from the sums.
//
//   g = argmin ½‖g − d‖²_P  s.t.  ⟨a_i, g⟩ ≥ ψ_i for every i       g = d + Σ λ_i P⁻¹a_i
//
// a_i is ∇c_i, or its moving average.
#pragma once
#include <cfloat>
#include <cmath>

#include "tensors.h"

namespace ux {

enum Hyper { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kNesterov, kMaximize, kConstraintWeight, kHyper };

// Columns of the sums: ‖d‖²_P, ⟨g2,P⁻¹g2⟩, then for each constraint ⟨a_i,d⟩, ⟨∇c_i,P⁻¹∇c_i⟩ and ⟨∇c_i,P⁻¹a₋_i⟩ with the average
// of the step before, and ⟨a_i,P⁻¹a_j⟩ for i ≤ j.
constexpr int kSqDirection = 0, kSqGrad = 1;
struct Sums {
    int slots;  // constraints

    UX_HD constexpr int dot(int i) const { return 2 + i; }
    UX_HD constexpr int power(int i) const { return 2 + slots + i; }
    UX_HD constexpr int aligned(int i) const { return 2 + 2 * slots + i; }
    UX_HD constexpr int gram(int i, int j) const {
        return i <= j ? 2 + 3 * slots + i * slots - i * (i - 1) / 2 + (j - i) : gram(j, i);
    }
    UX_HD constexpr int count() const { return 2 + 3 * slots + slots * (slots + 1) / 2; }
};
constexpr int kMaxSums = Sums{kMaxConstraints}.count();

// Values of one coordinate: d, the diagonal of P and of P⁻¹, and P⁻¹a_i.
template <class F, int K> struct Element {
    F direction, metric, inverse, constraint[K];
};

// A constraint's gradient in one coordinate: ∇c, its average before this step, and a, which the step uses.
template <class F, int K> struct Gradients {
    F held[K], before[K], a[K];
};

template <class F, int K, bool kAveraged>
UX_HD void accumulate(const Element<F, K>& e, F grad, const Gradients<F, K>& g, F* sums) {
    constexpr Sums columns{K};
    sums[kSqDirection] += e.direction * e.direction * e.metric;
    sums[kSqGrad] += grad * grad * e.inverse;
    UX_UNROLL
    for (int i = 0; i < K; ++i) {
        const F rescaled = g.held[i] * e.inverse;
        sums[columns.dot(i)] += g.a[i] * e.direction;
        sums[columns.power(i)] += g.held[i] * rescaled;
        if (kAveraged) sums[columns.aligned(i)] += g.before[i] * rescaled;
        UX_UNROLL
        for (int j = i; j < K; ++j) sums[columns.gram(i, j)] += g.a[i] * e.constraint[j];
    }
}

// How ∇c becomes a = kept·a₋ + fresh·∇c; without an average, a = ∇c.
struct Average {
    float kept = 0, fresh = 1;

    template <class F> UX_HD F next(F before, F held) const { return before * kept + held * fresh; }
};

// Skips the product at weight_decay = 0: 0·∞ would turn the direction of an infinite parameter into NaN.
template <class F> UX_HD F with_weight_decay(F direction, F param, float weight_decay) {
    return weight_decay == 0.0f ? direction : direction + param * weight_decay;
}

// On a GPU, approximate instructions with an error of 1 to 2 ulp: for half precision, exact square roots and divisions
// take longer than the memory accesses.
UX_HD float square_root(float x) {
#if defined(__CUDA_ARCH__)
    asm("sqrt.approx.f32 %0, %0;" : "+f"(x));
    return x;
#else
    return sqrtf(x);
#endif
}

template <class F> UX_HD F reciprocal(F x) {
#if defined(__CUDA_ARCH__)
    return __fdividef(1.0f, x);
#else
    return 1.0f / x;
#endif
}

// 1 − βᵗ, accurate to float's last bit: β − 1 is computed in double, and log1p and expm1 avoid cancellation.
UX_HD float bias_correction(double beta, float t) { return -expm1f(t * log1pf(float(beta - 1.0))); }

template <class F, int K> UX_HD F sum_of_squares(const F* a) {
    F sum = a[0] * a[0];
    UX_UNROLL
    for (int i = 1; i < K; ++i) sum = sum + a[i] * a[i];
    return sum;
}

// g = d + Σ λ_i P⁻¹a_i.
template <class F, int K> UX_HD F projected(const Element<F, K>& e, const float* lambda) {
    F g = e.direction;
    UX_UNROLL
    for (int i = 0; i < K; ++i) g = g + e.constraint[i] * lambda[i];
    return g;
}

// P = I.
template <class F, int K> UX_HD Element<F, K> euclidean(F direction, const F* a) {
    Element<F, K> e;
    e.direction = direction, e.metric = e.inverse = F{} + 1.0f;
    UX_UNROLL
    for (int i = 0; i < K; ++i) e.constraint[i] = a[i];
    return e;
}

// P = diag(metric).
template <class F, int K> UX_HD Element<F, K> rescaled(F direction, F metric, F inverse, const F* a) {
    Element<F, K> e;
    e.direction = direction, e.metric = metric, e.inverse = inverse;
    UX_UNROLL
    for (int i = 0; i < K; ++i) e.constraint[i] = a[i] * inverse;
    return e;
}

// In all rules, `x` has the operands of the state (kParam … kSecondMoment) and `a` those of the constraints.

// Projection: d = g2 and P = I; g overwrites g2.
struct ProjectRule {
    static constexpr unsigned kReads = bit(kGrad);
    static constexpr unsigned kWrites = bit(kGrad);

    UX_HD ProjectRule(const double*, bool, float) {}
    UX_HD unsigned stats_reads() const { return kReads; }
    template <int K, class F> UX_HD Element<F, K> element(F* x, const F* a) const {
        return euclidean<F, K>(x[kGrad], a);
    }
    template <int K, class F>
    UX_HD void step(F* x, const Element<F, K>& e, const float* lambda, float scale) const {
        x[kGrad] = projected(e, lambda) * scale;
    }
};

// torch.optim.SGD with momentum, dampening, Nesterov momentum and coupled weight decay; P = I.
struct SgdRule {
    static constexpr unsigned kReads = bit(kParam) | bit(kGrad) | bit(kFirstMoment);
    static constexpr unsigned kWrites = bit(kParam) | bit(kFirstMoment);

    float lr, momentum, nesterov_momentum, grad_factor, weight_decay, sign;
    bool has_momentum, nesterov;

    UX_HD SgdRule(const double* h, bool has_first, float t)
        : lr(float(h[kLr])), momentum(float(h[kBeta1])), nesterov_momentum(momentum), grad_factor(float(1 - h[kBeta2])),
          weight_decay(float(h[kWeightDecay])), sign(h[kMaximize] != 0 ? -1.0f : 1.0f), has_momentum(has_first),
          nesterov(h[kNesterov] != 0) {
        if (t == 1.0f) momentum = 0.0f, grad_factor = 1.0f;  // as in torch, the first gradient is not dampened
    }
    UX_HD unsigned stats_reads() const { return weight_decay == 0.0f ? kReads & ~bit(kParam) : kReads; }

    template <int K, class F> UX_HD Element<F, K> element(F* x, const F* a) const {
        const F grad = with_weight_decay(x[kGrad] * sign, x[kParam], weight_decay);
        if (!has_momentum) return euclidean<F, K>(grad, a);
        x[kFirstMoment] = x[kFirstMoment] * momentum + grad * grad_factor;
        return euclidean<F, K>(nesterov ? grad + x[kFirstMoment] * nesterov_momentum : x[kFirstMoment], a);
    }
    template <int K, class F>
    UX_HD void step(F* x, const Element<F, K>& e, const float* lambda, float scale) const {
        x[kParam] = x[kParam] - projected(e, lambda) * (scale * lr);
    }
};

// torch.optim.AdamW with the metric P = diag(√v̂ + eps), where v is the moving average of w·Σa_i² + g2².
struct AdamWRule {
    static constexpr unsigned kReads = bit(kParam) | bit(kGrad) | bit(kFirstMoment) | bit(kSecondMoment);
    static constexpr unsigned kWrites = bit(kParam) | bit(kFirstMoment) | bit(kSecondMoment);

    float lr, beta2, one_minus_beta1, one_minus_beta2, eps, weight_decay, sign, constraint_weight;
    float first_correction, second_correction;

    UX_HD AdamWRule(const double* h, bool, float t)
        : lr(float(h[kLr])), beta2(float(h[kBeta2])), one_minus_beta1(float(1 - h[kBeta1])),
          one_minus_beta2(float(1 - h[kBeta2])), eps(float(h[kEps])), weight_decay(float(h[kWeightDecay])),
          sign(h[kMaximize] != 0 ? -1.0f : 1.0f), constraint_weight(float(h[kConstraintWeight])) {
        first_correction = 1.0f / bias_correction(h[kBeta1], t);
        second_correction = 1.0f / sqrtf(bias_correction(h[kBeta2], t));
    }
    UX_HD unsigned stats_reads() const { return weight_decay == 0.0f ? kReads & ~bit(kParam) : kReads; }
    template <int K, class F> UX_HD Element<F, K> element(F* x, const F* a) const {
        const F grad = x[kGrad] * sign;
        x[kFirstMoment] = x[kFirstMoment] + (grad - x[kFirstMoment]) * one_minus_beta1;
        const F squares = grad * grad + sum_of_squares<F, K>(a) * constraint_weight;
        x[kSecondMoment] = x[kSecondMoment] * beta2 + squares * one_minus_beta2;
        const F metric = square_root(x[kSecondMoment]) * second_correction + eps;
        const F inverse = reciprocal(metric);
        const F adaptive = x[kFirstMoment] * first_correction * inverse;
        return rescaled<F, K>(with_weight_decay(adaptive, x[kParam], weight_decay), metric, inverse, a);
    }
    template <int K, class F>
    UX_HD void step(F* x, const Element<F, K>& e, const float* lambda, float scale) const {
        x[kParam] = x[kParam] - projected(e, lambda) * (scale * lr);
    }
};

// The correction of a step that another optimizer took: d = (θ_before − θ)/lr, with θ_before in place of the first
// moment. P = diag(√(v̂ + w·Σa_i²) + eps), where v is the moving average of g2².
struct WrapRule {
    static constexpr unsigned kReads = bit(kParam) | bit(kGrad) | bit(kFirstMoment) | bit(kSecondMoment);
    static constexpr unsigned kWrites = bit(kParam) | bit(kSecondMoment);

    float lr, inverse_lr, beta2, one_minus_beta2, eps, constraint_weight, second_correction;

    UX_HD WrapRule(const double* h, bool, float t)
        : lr(float(h[kLr])), inverse_lr(lr > 0 ? 1.0f / lr : 0.0f), beta2(float(h[kBeta2])),
          one_minus_beta2(float(1 - h[kBeta2])), eps(float(h[kEps])), constraint_weight(float(h[kConstraintWeight])),
          second_correction(1.0f / bias_correction(h[kBeta2], t)) {}
    UX_HD unsigned stats_reads() const { return kReads; }
    template <int K, class F> UX_HD Element<F, K> element(F* x, const F* a) const {
        x[kSecondMoment] = x[kSecondMoment] * beta2 + x[kGrad] * x[kGrad] * one_minus_beta2;
        const F squares = x[kSecondMoment] * second_correction + sum_of_squares<F, K>(a) * constraint_weight;
        const F metric = square_root(squares) + eps;
        return rescaled<F, K>((x[kFirstMoment] - x[kParam]) * inverse_lr, metric, reciprocal(metric), a);
    }
    // Where all λ are zero, the parameter keeps its bits.
    template <int K, class F> UX_HD void step(F* x, const Element<F, K>& e, const float* lambda, float) const {
        F correction = e.constraint[0] * lambda[0];
        UX_UNROLL
        for (int i = 1; i < K; ++i) correction = correction + e.constraint[i] * lambda[i];
        x[kParam] = x[kParam] - correction * lr;
    }
};

// Whether a skipped step has to undo something: the other optimizer has stepped already.
UX_HD constexpr bool restores(Rule rule) { return rule == Rule::wrap; }
template <class R> constexpr bool kRestores = false;
template <> inline constexpr bool kRestores<WrapRule> = true;

template <class R> struct RuleType {
    using type = R;
};
template <int K> struct Slots {
    static constexpr int value = K;
};

// Calls visitor(RuleType<R>{}) with the struct R of a rule. Always inlined, for the reason given at UX_HD.
template <class Visitor> inline __attribute__((always_inline)) auto visit(Rule rule, const Visitor& visitor) {
    switch (rule) {
        case Rule::project: return visitor(RuleType<ProjectRule>{});
        case Rule::sgd: return visitor(RuleType<SgdRule>{});
        case Rule::adamw: return visitor(RuleType<AdamWRule>{});
        case Rule::wrap: break;
    }
    return visitor(RuleType<WrapRule>{});
}

// Calls visitor(Slots<K>{}) with the number of constraints that the kernels are compiled for.
template <class Visitor> inline __attribute__((always_inline)) auto visit_slots(int slots, const Visitor& visitor) {
    switch (slots) {
        case 1: return visitor(Slots<1>{});
        case 2: return visitor(Slots<2>{});
        case 4: return visitor(Slots<4>{});
    }
    return visitor(Slots<8>{});
}

}  // namespace ux
