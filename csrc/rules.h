// The mathematics of a step, shared by all devices: what one element adds to the sums, how ψ and λ follow from the
// sums, and the update of one element. `F` is float, or a vector of floats on the CPU.
//
//   g = argmin ½‖g − d‖²_P  s.t.  ⟨g1, g⟩ ≥ ψ       λ = max((ψ − ⟨g1, d⟩) / ⟨g1, P⁻¹g1⟩, 0)       g = d + λ P⁻¹g1
#pragma once
#include <cfloat>
#include <cmath>

#include "tensors.h"

namespace ux {

enum Sum { kDot, kSqConstraint, kSqDirection, kRawConstraint, kRawGrad, kSums };
enum Hyper { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kNesterov, kMaximize, kConstraintWeight, kHyper };
enum Control { kKind, kEpsilon, kAlpha, kRate, kDelta, kIntegralGain, kCap, kMaxNorm, kLambdaMax, kGivenPsi, kControl };
enum Report {
    kConstraint,
    kPsi,
    kLambda,
    kReportDot,
    kReportSqConstraint,
    kReportSqDirection,
    kScale,
    kSkipped,
    kSkippedSteps,
    kIntegral,
    kReport
};
enum Kind { kUnconstrained = 0, kGiven = 1, kGradientNorm = 2, kEpsilonGap = 3 };

// Values of one coordinate: d, P⁻¹g1 and the diagonal of P.
template <class F> struct Element {
    F direction, constraint, metric;
};

template <class F> UX_HD void accumulate(const Element<F>& e, F grad, F constraint_grad, F* sums) {
    sums[kDot] += constraint_grad * e.direction;
    sums[kSqConstraint] += constraint_grad * e.constraint;
    sums[kSqDirection] += e.direction * e.direction * e.metric;
    sums[kRawConstraint] += constraint_grad * constraint_grad;  // non-finite if a gradient is, like the next
    sums[kRawGrad] += grad * grad;
}

// Skips the product at weight_decay = 0: 0·∞ would turn the direction of an infinite parameter into NaN.
template <class F> UX_HD F with_weight_decay(F direction, F param, float weight_decay) {
    return weight_decay == 0.0f ? direction : direction + param * weight_decay;
}

constexpr unsigned bit(int operand) { return 1u << operand; }

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

// Projection: d = g2 and P = I; g overwrites g2.
struct ProjectRule {
    static constexpr unsigned kReads = bit(kGrad) | bit(kConstraintGrad);
    static constexpr unsigned kWrites = bit(kGrad);

    UX_HD ProjectRule(const double*, bool, float) {}
    UX_HD unsigned stats_reads() const { return kReads; }
    template <class F> UX_HD Element<F> element(F* x) const { return {x[kGrad], x[kConstraintGrad], F{} + 1.0f}; }
    template <class F> UX_HD void step(F* x, const Element<F>& e, float lambda, float scale) const {
        x[kGrad] = (e.direction + e.constraint * lambda) * scale;
    }
};

// torch.optim.SGD with momentum, dampening, Nesterov momentum and coupled weight decay; P = I.
struct SgdRule {
    static constexpr unsigned kReads = bit(kParam) | bit(kGrad) | bit(kConstraintGrad) | bit(kFirstMoment);
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

    template <class F> UX_HD Element<F> element(F* x) const {
        const F grad = with_weight_decay(x[kGrad] * sign, x[kParam], weight_decay);
        const F one = F{} + 1.0f;
        if (!has_momentum) return {grad, x[kConstraintGrad], one};
        x[kFirstMoment] = x[kFirstMoment] * momentum + grad * grad_factor;
        return {nesterov ? grad + x[kFirstMoment] * nesterov_momentum : x[kFirstMoment], x[kConstraintGrad], one};
    }
    template <class F> UX_HD void step(F* x, const Element<F>& e, float lambda, float scale) const {
        x[kParam] = x[kParam] - (e.direction + e.constraint * lambda) * (scale * lr);
    }
};

// torch.optim.AdamW with the metric P = diag(√v̂ + eps), where v is the moving average of w·g1² + g2².
struct AdamWRule {
    static constexpr unsigned kReads =
        bit(kParam) | bit(kGrad) | bit(kConstraintGrad) | bit(kFirstMoment) | bit(kSecondMoment);
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
    template <class F> UX_HD Element<F> element(F* x) const {
        const F grad = x[kGrad] * sign;
        x[kFirstMoment] = x[kFirstMoment] + (grad - x[kFirstMoment]) * one_minus_beta1;
        const F squares = grad * grad + x[kConstraintGrad] * x[kConstraintGrad] * constraint_weight;
        x[kSecondMoment] = x[kSecondMoment] * beta2 + squares * one_minus_beta2;
        const F metric = square_root(x[kSecondMoment]) * second_correction + eps;
        const F inverse = reciprocal(metric);
        return {with_weight_decay(x[kFirstMoment] * first_correction * inverse, x[kParam], weight_decay),
            x[kConstraintGrad] * inverse, metric};
    }
    template <class F> UX_HD void step(F* x, const Element<F>& e, float lambda, float scale) const {
        x[kParam] = x[kParam] - (e.direction + e.constraint * lambda) * (scale * lr);
    }
};

// Calls visitor(RuleType<R>{}) with the struct R of a rule. Always inlined, for the reason given at UX_HD.
template <class R> struct RuleType {
    using type = R;
};

template <class Visitor> inline __attribute__((always_inline)) auto visit(Rule rule, const Visitor& visitor) {
    switch (rule) {
        case Rule::project: return visitor(RuleType<ProjectRule>{});
        case Rule::sgd: return visitor(RuleType<SgdRule>{});
        case Rule::adamw: break;
    }
    return visitor(RuleType<AdamWRule>{});
}

UX_HD double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }
UX_HD double power(double x, double p) { return p == 1.0 ? x : pow(x, p); }  // skips pow for the default exponent
// Unlike std::isfinite, compilers optimize this expression away only under fast-math.
UX_HD bool finite(double x) { return x - x == 0.0; }

// Sums over all groups: unweighted, and weighted by learning rate, as the constraint on the step needs them.
struct Totals {
    double dot = 0, sq_constraint = 0, sq_direction = 0, raw_squares = 0;  // unweighted
    double lr_dot = 0, lr_sq_constraint = 0;                               // Σ μ_k⟨·⟩_k
    double mean_lr;                                                        // the μ of Ψ = μψ

    UX_HD Totals(const double* sums, const double* hyper, int64_t n_groups) {
        double lr_total = 0;
        for (int64_t k = 0; k < n_groups; ++k) {
            const double* s = sums + k * kSums;
            const double lr = hyper[k * kHyper + kLr];
            dot += s[kDot], sq_constraint += s[kSqConstraint], sq_direction += s[kSqDirection];
            raw_squares += s[kRawConstraint] + s[kRawGrad];
            lr_dot += lr * s[kDot], lr_sq_constraint += lr * s[kSqConstraint], lr_total += lr;
        }
        mean_lr = sq_constraint > 0 ? lr_sq_constraint / sq_constraint : n_groups ? lr_total / double(n_groups) : 0.0;
    }
};

// Ψ = μψ: the first-order decrease of f1 that the control function requires from this step.
UX_HD double required_decrease(const double* c, double constraint, double integral, const Totals& t) {
    double decrease = t.mean_lr * c[kGivenPsi];
    if (c[kKind] == kGradientNorm) decrease = t.mean_lr * c[kAlpha] * power(t.sq_constraint, 0.5 * c[kDelta]);
    if (c[kKind] == kEpsilonGap) {
        const double gap = constraint - c[kEpsilon];
        const double feedback = (gap < 0 ? -1.0 : 1.0) * power(fabs(gap), c[kDelta]) + c[kIntegralGain] * integral;
        const bool has_alpha = c[kAlpha] == c[kAlpha];  // NaN: use the rate instead
        decrease = has_alpha ? t.mean_lr * c[kAlpha] * feedback : c[kRate] * feedback;
    }
    const double cap = c[kCap] * t.lr_sq_constraint;
    return decrease > cap ? cap : decrease;
}

// Integral of the gap with anti-windup: only gaps within half of |ε| count, and the integral term is clamped to ±|ε|.
UX_HD double integrate(const double* c, double constraint, double integral) {
    if (c[kKind] != kEpsilonGap || c[kIntegralGain] == 0) return integral;
    const double gap = constraint - c[kEpsilon], target = fabs(c[kEpsilon]);
    if (fabs(gap) > 0.5 * target) return integral;
    return clamp(integral + gap, -target / c[kIntegralGain], target / c[kIntegralGain]);
}

// End of the stats phase: reads the sums and f1 (report[kConstraint]); writes ψ, λ, the clipping factor and the flags.
UX_HD void solve(const double* sums, const double* hyper, int64_t n_groups, const double* c, double* report) {
    const Totals t(sums, hyper, n_groups);
    const bool constrained = c[kKind] != kUnconstrained;
    const double integral = integrate(c, report[kConstraint], report[kIntegral]);
    const double decrease = constrained ? required_decrease(c, report[kConstraint], integral, t) : 0.0;
    double lambda = 0;
    if (constrained && t.lr_sq_constraint > 0) {
        lambda = (decrease - t.lr_dot) / t.lr_sq_constraint;
        if (lambda < 0) lambda = 0;  // a NaN stays a NaN
        if (lambda > c[kLambdaMax]) lambda = c[kLambdaMax];
    }
    const double sq_norm = t.sq_direction + 2 * lambda * t.dot + lambda * lambda * t.sq_constraint;
    const double clip_factor = c[kMaxNorm] / (sqrt(sq_norm > 0 ? sq_norm : 0.0) + 1e-6);
    const bool all_finite = finite(t.raw_squares) && finite(t.dot) && finite(t.sq_constraint) &&
                            finite(t.sq_direction) && finite(decrease) && lambda <= FLT_MAX &&
                            (!constrained || finite(report[kConstraint]));

    report[kPsi] = t.mean_lr > 0 ? decrease / t.mean_lr : 0.0;
    report[kLambda] = lambda;
    report[kReportDot] = t.mean_lr > 0 ? t.lr_dot / t.mean_lr : t.dot;
    report[kReportSqConstraint] = t.sq_constraint;
    report[kReportSqDirection] = t.sq_direction;
    report[kScale] = clip_factor < 1 ? clip_factor : 1.0;
    report[kSkipped] = all_finite ? 0.0 : 1.0;
    if (all_finite) report[kIntegral] = integral;
    else report[kSkippedSteps] += 1;
}

}  // namespace ux
