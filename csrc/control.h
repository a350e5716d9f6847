// The end of the stats phase, shared by all devices: from the sums and the values of c follow Ψ (the control function),
// λ (the QP), the clipping factor and the flags.
#pragma once
#include "qp.h"
#include "rules.h"

namespace ux {

// Columns of `control`; row 0 has only kMaxNorm, row 1 + i is that of a constraint.
enum Control {
    kKind,
    kEpsilon,
    kAlpha,
    kRate,
    kDelta,
    kIntegralGain,
    kCap,
    kGivenPsi,
    kEquality,
    kLambdaMax,
    kDecay,
    kControl
};
constexpr int kMaxNorm = 0;
enum Kind { kGiven = 0, kGradientNorm = 1, kEpsilonGap = 2 };

// Columns of `report` in the row of a constraint. c is input; from kIntegral on, values persist from step to step.
enum Report {
    kConstraint,
    kPsi,
    kLambda,
    kMultiplier,
    kDot,
    kSqConstraint,
    kShortfall,
    kIntegral,
    kAverageWeight,
    kReport
};
// Columns of row 0 of `report`; kSkippedSteps persists.
enum StepReport { kSqDirectionSum, kScale, kSkipped, kSkippedSteps };

UX_HD double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }
UX_HD double power(double x, double p) { return p == 1.0 ? x : pow(x, p); }  // skips pow for the default exponent
// Unlike std::isfinite, compilers optimize this expression away only under fast-math.
UX_HD bool finite(double x) { return x - x == 0.0; }

// The numbers of one step in `control` and `report`: row 0, and a row for each constraint that takes part in it.
struct Numbers {
    double control[1 + kMaxConstraints][kControl];
    double report[1 + kMaxConstraints][kReport];
};
// Row of the job's `control` and `report` for a row of Numbers.
UX_HD int64_t row_of_numbers(const Job& job, int row) { return row ? 1 + job.control_row[row - 1] : 0; }

// The rows of the report that take no part in the step lose the values of an earlier step, but not what persists.
UX_HD void clear_absent(const Job& job) {
    for (int row = 0; row < job.n_controls; ++row) {
        bool takes_part = false;
        for (int i = 0; i < job.n_constraints; ++i) takes_part = takes_part || job.control_row[i] == row;
        for (int column = kPsi; column < kIntegral && !takes_part; ++column)
            job.report[(1 + row) * kReport + column] = 0;
    }
}

UX_HD double next_weight(double weight, double decay) { return weight * decay + (1 - decay); }

// How the gradient of constraint i is averaged in this step; `solved`: in the apply phase, after solve() has stored the
// new weight.
UX_HD Average average_of(const Job& job, int i, bool solved) {
    if (i >= job.n_constraints) return {};
    const int64_t row = 1 + job.control_row[i];
    const double decay = job.control[row * kControl + kDecay], stored = job.report[row * kReport + kAverageWeight];
    return {float(decay), float(1 - decay), float(1 / (solved ? stored : next_weight(stored, decay)))};
}

// Sums over all groups: unweighted, and weighted by learning rate μ_k, as the constraint on the step needs them. K is the
// number of slots, so that the values of a single constraint fit in registers.
template <int K> struct Totals {
    double sq_direction = 0, raw_squares = 0;
    double dot[K] = {}, gram[K][K] = {};
    double lr_dot[K] = {}, lr_gram[K][K] = {};
    double mean_lr[K];     // the μ of Ψ_i = μψ_i
    double multiplier[K];  // the Lagrangian's multiplier divided by λ

    UX_HD explicit Totals(const Job& job) {
        constexpr Sums columns{K};
        double lr_total = 0, effective[K] = {};
        for (int64_t k = 0; k < job.n_groups; ++k) {
            const double* s = job.sums + k * columns.count();
            const double* h = job.hyper + k * kHyper;
            const double lr = h[kLr];
            sq_direction += s[kSqDirection], raw_squares += s[kRawGrad], lr_total += lr;
            for (int i = 0; i < K; ++i) {
                raw_squares += s[columns.raw(i)];
                dot[i] += s[columns.dot(i)], lr_dot[i] += lr * s[columns.dot(i)];
                for (int j = 0; j < K; ++j)
                    gram[i][j] += s[columns.gram(i, j)], lr_gram[i][j] += lr * s[columns.gram(i, j)];
                effective[i] += lr * s[columns.gram(i, i)] * of_momentum(job.rule, h);
            }
        }
        for (int i = 0; i < K; ++i) {
            const double sq = gram[i][i], lr_sq = lr_gram[i][i];
            mean_lr[i] = sq > 0 ? lr_sq / sq : job.n_groups ? lr_total / double(job.n_groups) : 0.0;
            multiplier[i] = lr_sq > 0 ? effective[i] / lr_sq : 1.0;
        }
    }

    // A momentum buffer is about (1 − τ)/(1 − β) gradients, and λ as much larger than the multiplier; τ: dampening.
    static UX_HD double of_momentum(Rule rule, const double* h) {
        return rule == Rule::sgd && h[kBeta1] > 0 && h[kBeta2] < 1 ? (1 - h[kBeta1]) / (1 - h[kBeta2]) : 1.0;
    }
};

// Ψ = μψ: the first-order decrease of c that the control function requires from this step.
// `sq` and `lr_sq`: ⟨a,P⁻¹a⟩, unweighted and weighted by learning rate.
UX_HD double required_decrease(
    const double* c, double constraint, double integral, double mean_lr, double sq, double lr_sq) {
    double decrease = mean_lr * c[kGivenPsi];
    if (c[kKind] == kGradientNorm) decrease = mean_lr * c[kAlpha] * power(sq, 0.5 * c[kDelta]);
    if (c[kKind] == kEpsilonGap) {
        const double gap = constraint - c[kEpsilon];
        const double feedback = (gap < 0 ? -1.0 : 1.0) * power(fabs(gap), c[kDelta]) + c[kIntegralGain] * integral;
        const bool has_alpha = c[kAlpha] == c[kAlpha];  // NaN: use the rate instead
        decrease = has_alpha ? mean_lr * c[kAlpha] * feedback : c[kRate] * feedback;
    }
    const double cap = c[kCap] * lr_sq;
    if (c[kEquality] != 0 && decrease < -cap) return -cap;
    return decrease > cap ? cap : decrease;
}

// Integral of the gap with anti-windup: only gaps within half of |ε| count, and the integral term is clamped to ±|ε|.
UX_HD double integrate(const double* c, double constraint, double integral) {
    if (c[kKind] != kEpsilonGap || c[kIntegralGain] == 0) return integral;
    const double gap = constraint - c[kEpsilon], target = fabs(c[kEpsilon]);
    if (fabs(gap) > 0.5 * target) return integral;
    return clamp(integral + gap, -target / c[kIntegralGain], target / c[kIntegralGain]);
}

// Solves for λ, each limited to ±λ_max.
template <int K>
UX_HD void solve_qp(const Job& job, const Totals<K>& t, const double* decrease, const Numbers& numbers, double* lambda) {
    const int n = job.n_constraints;
    double gram[kMaxConstraints][kMaxConstraints], violation[K];
    unsigned equalities = 0;
    for (int i = 0; i < K && i < n; ++i) {
        violation[i] = decrease[i] - t.lr_dot[i];
        if (numbers.control[1 + i][kEquality] != 0) equalities |= bit(i);
        for (int j = 0; j < K; ++j) gram[i][j] = t.lr_gram[i][j];
    }
    if (K == 1) lambda[0] = n ? solve_one(gram[0][0], violation[0], equalities != 0) : 0.0;
    else solve_dual(n, gram, violation, equalities, lambda);
    for (int i = 0; i < K && i < n; ++i) {
        const double limit = numbers.control[1 + i][kLambdaMax];
        if (lambda[i] > limit) lambda[i] = limit;  // a NaN stays a NaN
        if (lambda[i] < -limit) lambda[i] = -limit;
    }
}

// Reads the sums and the values of c in `numbers.report`; writes the rest of `numbers.report`.
template <int K> UX_HD void solve(const Job& job, Numbers& numbers) {
    const int n = job.n_constraints;
    const Totals<K> t(job);
    double integral[K], decrease[K], lambda[K] = {};
    bool all_finite = finite(t.raw_squares) && finite(t.sq_direction);
    for (int i = 0; i < K && i < n; ++i) {
        const double* c = numbers.control[1 + i];
        const double constraint = numbers.report[1 + i][kConstraint];
        integral[i] = integrate(c, constraint, numbers.report[1 + i][kIntegral]);
        decrease[i] = required_decrease(c, constraint, integral[i], t.mean_lr[i], t.gram[i][i], t.lr_gram[i][i]);
        all_finite = all_finite && finite(constraint) && finite(decrease[i]) && finite(t.dot[i]);
        for (int j = 0; j <= i; ++j) all_finite = all_finite && finite(t.gram[i][j]);
    }
    solve_qp(job, t, decrease, numbers, lambda);
    double sq_norm = t.sq_direction;
    for (int i = 0; i < K && i < n; ++i)
        sq_norm += 2 * lambda[i] * t.dot[i], all_finite = all_finite && fabs(lambda[i]) <= FLT_MAX;
    for (int i = 0; i < K && i < n; ++i)
        for (int j = 0; j < K && j < n; ++j) sq_norm += lambda[i] * lambda[j] * t.gram[i][j];
    const double clip_factor = numbers.control[0][kMaxNorm] / (sqrt(sq_norm > 0 ? sq_norm : 0.0) + 1e-6);
    const double scale = clip_factor < 1 ? clip_factor : 1.0;

    for (int i = 0; i < K && i < n; ++i) {
        double achieved = t.lr_dot[i];
        for (int j = 0; j < K && j < n; ++j) achieved += lambda[j] * t.lr_gram[i][j];
        const double* c = numbers.control[1 + i];
        double* report = numbers.report[1 + i];
        const double mu = t.mean_lr[i], shortfall = decrease[i] - scale * achieved;
        report[kPsi] = mu > 0 ? decrease[i] / mu : 0.0;
        report[kLambda] = lambda[i];
        report[kMultiplier] = lambda[i] * t.multiplier[i];
        report[kDot] = mu > 0 ? t.lr_dot[i] / mu : t.dot[i];
        report[kSqConstraint] = t.gram[i][i];
        report[kShortfall] = mu > 0 && (shortfall > 0 || c[kEquality] != 0) ? shortfall / mu : 0.0;
        if (!all_finite) continue;
        report[kIntegral] = integral[i];
        report[kAverageWeight] = next_weight(report[kAverageWeight], c[kDecay]);
    }
    numbers.report[0][kSqDirectionSum] = t.sq_direction;
    numbers.report[0][kScale] = scale;
    numbers.report[0][kSkipped] = all_finite ? 0.0 : 1.0;
    if (!all_finite) numbers.report[0][kSkippedSteps] += 1;
}

}  // namespace ux
