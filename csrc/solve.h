// The end of the stats phase, shared by all devices: from the sums and the values of c follow Ψ (the control function),
// λ (the QP), the clipping factor and the flags.
#pragma once
#include "control.h"
#include "qp.h"
#include "rules.h"

namespace ux {

// Columns of row 0 of `report`; kSkippedSteps persists.
enum StepReport { kSqDirectionSum, kScale, kSkipped, kSkippedSteps };

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
        for (int column = kPsi; column < kKept && !takes_part; ++column) job.report[(1 + row) * kReport + column] = 0;
    }
}

// How the gradient of constraint i is averaged in this step; `solved`: in the apply phase, when solve() has changed what
// the control remembers.
UX_HD Average average_of(const Job& job, int i, bool solved) {
    if (!job.averages || i >= job.n_constraints) return {};
    const int64_t row = 1 + job.control_row[i];
    const double* report = job.report + row * kReport;
    const double fresh = solved ? report[kFresh] : fresh_weight(job.control + row * kControl, report);
    return {float(1 - fresh), float(fresh)};
}

// Sums over all groups: unweighted, and weighted by learning rate μ_k, as the constraint on the step needs them. K is the
// number of slots, so that the values of a single constraint fit in registers.
template <int K> struct Totals {
    double sq_direction = 0, sq_grad = 0;
    double dot[K] = {}, gram[K][K] = {};
    double lr_dot[K] = {}, lr_gram[K][K] = {}, lr_aligned[K] = {}, lr_power[K] = {};
    double mean_lr[K];     // the μ of Ψ_i = μψ_i
    double multiplier[K];  // the Lagrangian's multiplier divided by λ

    UX_HD explicit Totals(const Job& job) {
        constexpr Sums columns{K};
        double lr_total = 0, effective[K] = {};
        UX_ROLLED
        for (int64_t k = 0; k < job.n_groups; ++k) {
            const double* s = job.sums + k * columns.count();
            const double* h = job.hyper + k * kHyper;
            const double lr = h[kLr];
            sq_direction += s[kSqDirection], sq_grad += s[kSqGrad], lr_total += lr;
            UX_ROLLED
            for (int i = 0; i < K; ++i) {
                lr_aligned[i] += lr * s[columns.aligned(i)], lr_power[i] += lr * s[columns.power(i)];
                dot[i] += s[columns.dot(i)], lr_dot[i] += lr * s[columns.dot(i)];
                for (int j = 0; j < K; ++j)
                    gram[i][j] += s[columns.gram(i, j)], lr_gram[i][j] += lr * s[columns.gram(i, j)];
                effective[i] += lr * s[columns.gram(i, i)] * of_momentum(job.rule, h);
            }
        }
        UX_ROLLED
        for (int i = 0; i < K; ++i) {
            const double sq = gram[i][i], lr_sq = lr_gram[i][i];
            mean_lr[i] = sq > 0 ? lr_sq / sq : job.n_groups ? lr_total / double(job.n_groups) : 0.0;
            multiplier[i] = lr_sq > 0 ? effective[i] / lr_sq : 1.0;
        }
    }

    // The wrapped optimizer has stepped along ∇f2 + Σλ̂_i∇c_i, λ̂ being `carried`. To first order the second part of its
    // step is sΣλ̂_iP⁻¹a_i, where s is the length of the step relative to P⁻¹ times that gradient. It is taken out of d, so
    // that the QP's solution is sλ, of which s(λ − λ̂) is still to be applied. Where a run comes to rest, λ = λ̂, and
    // neither s nor P matters. Returns s.
    UX_HD double take_out(const double* carried) {
        const double length = sqrt(sq_direction / sq_grad), s = finite(length) && length > 0 ? length : 1.0;
        UX_ROLLED
        for (int i = 0; i < K; ++i)
            for (int j = 0; j < K; ++j)
                dot[i] -= s * gram[i][j] * carried[j], lr_dot[i] -= s * lr_gram[i][j] * carried[j];
        return s;
    }

    // A momentum buffer is about (1 − τ)/(1 − β) gradients, and λ as much larger than the multiplier; τ: dampening.
    static UX_HD double of_momentum(Rule rule, const double* h) {
        return rule == Rule::sgd && h[kBeta1] > 0 && h[kBeta2] < 1 ? (1 - h[kBeta1]) / (1 - h[kBeta2]) : 1.0;
    }
};

// Solves for λ, each limited to ±size·λ_max.
template <int K>
UX_HD void solve_qp(
    const Job& job, const Totals<K>& t, const double* decrease, const Numbers& numbers, double size, double* lambda) {
    const int n = job.n_constraints;
    double gram[kMaxConstraints][kMaxConstraints], violation[K];
    unsigned equalities = 0;
    UX_ROLLED
    for (int i = 0; i < K && i < n; ++i) {
        violation[i] = decrease[i] - t.lr_dot[i];
        if (numbers.control[1 + i][kEquality] != 0) equalities |= bit(i);
        for (int j = 0; j < K; ++j) gram[i][j] = t.lr_gram[i][j];
    }
    if (K == 1) lambda[0] = n ? solve_one(gram[0][0], violation[0], equalities != 0) : 0.0;
    else solve_dual(n, gram, violation, equalities, lambda);
    UX_ROLLED
    for (int i = 0; i < K && i < n; ++i) {
        const double limit = size * numbers.control[1 + i][kLambdaMax];
        if (lambda[i] > limit) lambda[i] = limit;  // a NaN stays a NaN
        if (lambda[i] < -limit) lambda[i] = -limit;
    }
}

// Moves the multiplier that a wrapped optimizer finds in its gradient towards λ. Where the constraint has slack, towards
// the negative λ that would use it up, so that noise is not rectified; the mean itself stays at zero or above.
UX_HD void carry(double gram, double slack, double lambda, double size, const double* control, double* state) {
    approach(state[kCarried], (gram > 0 ? lambda + slack / gram : lambda) / size, kForget);
    if (control[kEquality] == 0) state[kCarried] = most(state[kCarried], 0);
}

// Reads the sums and the values of c in `numbers.report`; writes the rest of `numbers.report`.
template <int K> UX_HD void solve(const Job& job, Numbers& numbers) {
    const int n = job.n_constraints;
    Totals<K> t(job);
    double state[K][kReport], decrease[K], lambda[K] = {}, carried[K] = {}, size = 1;
    bool all_finite = finite(t.sq_grad) && finite(t.sq_direction);
    if (job.rule == Rule::wrap) {
        for (int i = 0; i < K && i < n; ++i) carried[i] = numbers.report[1 + i][kCarried];
        size = t.take_out(carried);
    }
    UX_ROLLED
    for (int i = 0; i < K && i < n; ++i) {
        for (int column = 0; column < kReport; ++column) state[i][column] = numbers.report[1 + i][column];
        const Measured measured{state[i][kConstraint], t.mean_lr[i], t.gram[i][i], t.lr_gram[i][i], t.lr_dot[i],
            t.lr_aligned[i], t.lr_power[i]};
        numbers.report[1 + i][kFresh] = fresh_weight(numbers.control[1 + i], state[i]);
        decrease[i] = required_decrease(numbers.control[1 + i], measured, state[i]);
        all_finite = all_finite && finite(measured.value) && finite(decrease[i]) && finite(t.dot[i]) &&
                     finite(t.lr_power[i]) && finite(t.lr_aligned[i]);
        for (int j = 0; j <= i; ++j) all_finite = all_finite && finite(t.gram[i][j]);
    }
    solve_qp(job, t, decrease, numbers, size, lambda);
    double sq_norm = t.sq_direction;
    UX_ROLLED
    for (int i = 0; i < K && i < n; ++i)
        sq_norm += 2 * lambda[i] * t.dot[i], all_finite = all_finite && fabs(lambda[i]) <= FLT_MAX;
    UX_ROLLED
    for (int i = 0; i < K && i < n; ++i)
        for (int j = 0; j < K && j < n; ++j) sq_norm += lambda[i] * lambda[j] * t.gram[i][j];
    const double clip_factor = numbers.control[0][kMaxNorm] / (sqrt(sq_norm > 0 ? sq_norm : 0.0) + 1e-6);
    const double scale = clip_factor < 1 ? clip_factor : 1.0;

    UX_ROLLED
    for (int i = 0; i < K && i < n; ++i) {
        double achieved = t.lr_dot[i];
        UX_ROLLED
        for (int j = 0; j < K && j < n; ++j) achieved += lambda[j] * t.lr_gram[i][j];
        const double* c = numbers.control[1 + i];
        double* report = numbers.report[1 + i];
        const double mu = t.mean_lr[i], shortfall = decrease[i] - scale * achieved;
        report[kPsi] = mu > 0 ? decrease[i] / mu : 0.0;
        report[kLambda] = lambda[i] - size * carried[i];
        report[kMultiplier] = lambda[i] / size * t.multiplier[i];
        if (job.rule == Rule::wrap) carry(t.lr_gram[i][i], least(shortfall, 0), lambda[i], size, c, state[i]);
        report[kDot] = mu > 0 ? t.lr_dot[i] / mu : t.dot[i];
        report[kSqConstraint] = t.gram[i][i];
        report[kShortfall] = mu > 0 && (shortfall > 0 || c[kEquality] != 0) ? shortfall / mu : 0.0;
        for (int column = kKept; column < kReport && all_finite; ++column) report[column] = state[i][column];
    }
    numbers.report[0][kSqDirectionSum] = t.sq_direction;
    numbers.report[0][kScale] = scale;
    numbers.report[0][kSkipped] = all_finite ? 0.0 : 1.0;
    if (!all_finite) numbers.report[0][kSkippedSteps] += 1;
}

}  // namespace ux
