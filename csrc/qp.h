// The dual quadratic program of a step with up to eight constraints, solved by one thread of any device.
//
//   g = argmin ½‖g − d‖²_P  s.t.  ⟨a_i, g⟩ ≥ ψ_i   (= ψ_i for an equality)     g = d + P⁻¹ Σ λ_i a_i
//   λ = argmin ½λᵀGλ − λᵀb  s.t.  λ_i ≥ 0          (free for an equality)      G_ij = ⟨a_i, P⁻¹a_j⟩
//                                                                              b_i = ψ_i − ⟨a_i, d⟩
//
// Method: the dual active set method of Goldfarb and Idnani (Mathematical Programming 27, 1983), written in terms of G.
// It is exact: it ends at the active set of the solution, not at an approximation. All quantities below are in units in
// which every a_i has norm 1 (unit diagonal of G) and the largest demand is 1, so that constants need no units.
//
// Contradicting demands: if no g meets all of them, or only one with ‖g − d‖ > ½√ρ‖b₊‖ (50 times the norm of the
// demands), every demand gets a slack s_i at the price ½ρs_i². This adds I/ρ to G and leaves the least sum of squared
// shortfalls, up to a relative 1/ρ. At its solution ‖g − d‖² + ‖λ‖²/ρ = λᵀb ≤ ‖λ‖‖b₊‖, hence ‖g − d‖ ≤ ½√ρ‖b₊‖ and
// ‖λ‖ ≤ ρ‖b₊‖. So this bound holds for every step, and demands that nearly contradict cannot cause a huge one.
#pragma once
#include <cfloat>
#include <cmath>

#include "tensors.h"

namespace ux {

// G comes from float32 products, so its entries are wrong by about 1e-7. A normal whose squared distance from the span
// of the active ones is below this cannot be distinguished from a normal in the span.
constexpr double kMinPivot = 1e-6;
// Price ρ of a slack. Contradicting demands have λ up to ρ, and their terms λ_i a_i cancel in float32: at 1e4 the error
// is 6e-8 · 1e4 = 6e-4 of a demand at most. A lower price would give up demands that a step can meet.
constexpr double kSlackPrice = 1e4;
constexpr double kReportedShortfall = 1e-3;   // smallest reported shortfall, relative to the demand or the step
constexpr double kQpRounding = 1e-14;         // smallest violation that is not rounding error
constexpr int kIterationsPerConstraint = 32;  // prevents endless cycles by rounding; tests needed 24 in all

struct QpSolution {
    bool feasible;      // false: λ is that of the problem with slacks, or a demand has no gradient
    unsigned short_of;  // bit i: constraint i misses its demand by more than kReportedShortfall
    int iterations;     // at most 2 · kIterationsPerConstraint · n
};

UX_HD double larger(double a, double b) { return a > b ? a : b; }  // fmax is a library call on the CPU
UX_HD double limited(double x, double limit) { return x > limit ? limit : x < -limit ? -limit : x; }

// The problem in the units described above.
struct UnitQp {
    int n;
    unsigned equalities, present;  // absent: the gradient is zero, so λ_i = 0
    double slack;                  // 1/ρ, or 0 for an exact solution
    double gram[kMaxConstraints][kMaxConstraints];
    double demand[kMaxConstraints];

    UX_HD bool is_equality(int i) const { return (equalities >> i) & 1; }
    UX_HD double entry(int i, int j) const { return i == j ? gram[i][i] + slack : gram[i][j]; }
    // What constraint i still demands at λ, or has left over if negative.
    UX_HD double residual(int i, const double* lambda) const {
        double reached = 0;
        UX_ROLLED
        for (int j = 0; j < n; ++j) reached += entry(i, j) * lambda[j];
        return demand[i] - reached;
    }
    UX_HD double violation(int i, const double* lambda) const {
        const double unmet = residual(i, lambda);
        return is_equality(i) ? fabs(unmet) : unmet;
    }
    UX_HD double magnitude(int i, const double* lambda) const {
        double sum = fabs(demand[i]);
        UX_ROLLED
        for (int j = 0; j < n; ++j) sum += fabs(lambda[j]);
        return sum;
    }
};

// The active constraints in the order in which they were added, and the Cholesky factor L of their block of G.
struct ActiveSet {
    const UnitQp& qp;
    int size = 0;
    unsigned mask = 0;
    int members[kMaxConstraints];
    double factor[kMaxConstraints][kMaxConstraints];

    UX_HD explicit ActiveSet(const UnitQp& problem) : qp(problem) {}

    // Solves L y = x in place.
    UX_HD void forward(double* x) const {
        UX_ROLLED
        for (int i = 0; i < size; ++i) {
            UX_ROLLED
            for (int j = 0; j < i; ++j) x[i] -= factor[i][j] * x[j];
            x[i] /= factor[i][i];
        }
    }
    // Solves Lᵀ y = x in place.
    UX_HD void backward(double* x) const {
        UX_ROLLED
        for (int i = size - 1; i >= 0; --i) {
            UX_ROLLED
            for (int j = i + 1; j < size; ++j) x[i] -= factor[j][i] * x[j];
            x[i] /= factor[i][i];
        }
    }
    // Writes L⁻¹ G_Ap to `row`; returns the squared distance of a_p from the span of the active normals.
    UX_HD double distance(int p, double* row) const {
        UX_ROLLED
        for (int i = 0; i < size; ++i) row[i] = qp.entry(members[i], p);
        forward(row);
        double pivot = qp.entry(p, p);
        UX_ROLLED
        for (int i = 0; i < size; ++i) pivot -= row[i] * row[i];
        return pivot;
    }
    UX_HD void add(int p) {
        const double pivot = distance(p, factor[size]);
        factor[size][size] = sqrt(pivot > kMinPivot ? pivot : kMinPivot);  // lower only if G is not a Gram matrix
        members[size++] = p;
        mask |= 1u << p;
    }
    UX_HD void remove(int position) {
        const int kept = size;
        mask = 0, size = 0;
        UX_ROLLED
        for (int i = 0; i < kept; ++i)
            if (i != position) add(members[i]);  // members[size] is written after members[i] is read, size ≤ i
    }
    // λ that meets the active demands with equality.
    UX_HD void solve(double* lambda) const {
        double x[kMaxConstraints];
        UX_ROLLED
        for (int i = 0; i < size; ++i) x[i] = qp.demand[members[i]];
        forward(x);
        backward(x);
        UX_ROLLED
        for (int i = 0; i < size; ++i) {
            const bool clamped = x[i] < 0 && !qp.is_equality(members[i]);  // only by rounding
            lambda[members[i]] = clamped ? 0.0 : x[i];
        }
    }
};

// The first equality not yet added, else the most violated constraint; -1: all are met. Demands that the active ones
// imply (`implied`) are met up to the error of G.
UX_HD int next_constraint(const UnitQp& qp, unsigned active, unsigned implied, const double* lambda) {
    int worst = -1;
    double largest = 0;
    UX_ROLLED
    for (int i = 0; i < qp.n; ++i) {
        const bool is_implied = (implied >> i) & 1;
        if (!((qp.present & ~active) >> i & 1)) continue;
        if (qp.is_equality(i) && !is_implied) return i;
        const double violation = qp.violation(i, lambda);
        const double tolerance = (is_implied ? kMinPivot : kQpRounding) * qp.magnitude(i, lambda);
        if (violation > largest && violation > tolerance) worst = i, largest = violation;
    }
    return worst;
}

// Writes λ and returns whether it meets all demands; with a slack it always does. `lambda` must be zero at first.
UX_HD bool solve_unit(const UnitQp& qp, double* lambda, int& iterations) {
    ActiveSet active(qp);
    unsigned implied = 0;  // demands that are met because the active ones are
    int p = -1;            // the constraint that is being added
    double sign = 1;       // of its multiplier
    UX_ROLLED
    for (int i = 0; i < kIterationsPerConstraint * qp.n; ++i, ++iterations) {
        const bool is_new = p < 0;
        if (is_new) {
            p = next_constraint(qp, active.mask, implied, lambda);
            if (p < 0) return true;
            sign = qp.residual(p, lambda) < 0 ? -1.0 : 1.0;
        }
        // While λ_p grows by t, the active λ change by −t·change, which keeps their demands met.
        double change[kMaxConstraints];
        const double pivot = active.distance(p, change);
        active.backward(change);
        const double violation = sign * qp.residual(p, lambda);
        const double full = pivot > 0 ? violation / pivot : DBL_MAX;  // the t that meets demand p
        double reach = DBL_MAX;                                       // the t at which an active λ becomes zero
        int blocking = -1;
        UX_ROLLED
        for (int k = 0; k < active.size; ++k) {
            const double rate = sign * change[k], value = lambda[active.members[k]];
            if (!qp.is_equality(active.members[k]) && rate > 0 && value < reach * rate)
                reach = value / rate, blocking = k;
        }
        const bool is_blocked = blocking >= 0 && reach <= full;
        // The objective never falls, so with slacks ‖λ‖ ≤ 2ρ‖b₊‖ throughout. More than that is a contradiction.
        const bool is_huge = (is_blocked ? reach : full) > 2 * kSlackPrice * qp.n;
        if (is_huge || (pivot < kMinPivot && !is_blocked)) {
            // a_p is in the span of the active normals: demand p is met already, or contradicts the active ones.
            const bool is_met = violation <= kMinPivot * qp.magnitude(p, lambda);
            if (!is_new || !is_met) return false;
            implied |= 1u << p;
            p = -1;
        } else if (is_blocked) {
            UX_ROLLED
            for (int k = 0; k < active.size; ++k) lambda[active.members[k]] -= reach * sign * change[k];
            UX_ROLLED
            for (int k = 0; k < active.size; ++k) {
                double& value = lambda[active.members[k]];
                if (k == blocking || (value < 0 && !qp.is_equality(active.members[k]))) value = 0;
            }
            lambda[p] += sign * reach;
            active.remove(blocking);
            implied = 0;
        } else {
            active.add(p);
            active.solve(lambda);
            p = -1;
        }
    }
    return false;
}

// Squared norm of g − d.
UX_HD double sq_step(const UnitQp& qp, const double* lambda) {
    double sum = 0;
    UX_ROLLED
    for (int i = 0; i < qp.n; ++i) UX_ROLLED
    for (int j = 0; j < qp.n; ++j) sum += lambda[i] * qp.gram[i][j] * lambda[j];
    return sum > 0 ? sum : 0.0;
}

// One constraint: the closed form, without the rounding of other units.
UX_HD double solve_one(double gram, double b, bool is_equality) {
    const double lambda = gram > 0 ? b / gram : 0.0;
    return lambda < 0 && !is_equality ? 0.0 : lambda;  // a NaN stays a NaN
}

// Solves for λ. Reads gram[i][j] for j ≤ i; `equalities` has bit i set if constraint i is an equality.
// If an input is NaN or infinite, every λ is NaN. For finite input no λ is NaN; it is infinite if it overflows.
// A constraint without gradient (G_ii = 0) has λ = 0 and is short if it demands something.
UX_HD_CALL QpSolution solve_dual(
    int n, const double (*gram)[kMaxConstraints], const double* b, unsigned equalities, double* lambda) {
    bool all_finite = true;
    UX_ROLLED
    for (int i = 0; i < n; ++i) {
        all_finite = all_finite && b[i] - b[i] == 0;
        UX_ROLLED
        for (int j = 0; j <= i; ++j) all_finite = all_finite && gram[i][j] - gram[i][j] == 0;
        lambda[i] = 0;
    }
    if (!all_finite) {
        UX_ROLLED
        for (int i = 0; i < n; ++i) lambda[i] = NAN;
        return {false, 0, 0};
    }

    QpSolution solution{true, 0, 0};
    if (n == 1) {
        lambda[0] = solve_one(gram[0][0], b[0], equalities & 1);
        const bool is_unmet = gram[0][0] <= 0 && ((equalities & 1) ? b[0] != 0 : b[0] > 0);
        return {!is_unmet, is_unmet ? 1u : 0u, 0};
    }

    UnitQp qp{};
    qp.n = n, qp.equalities = equalities;
    double inverse_norm[kMaxConstraints], unit = 0;  // the largest demand
    UX_ROLLED
    for (int i = 0; i < n; ++i) {
        const double positive = b[i] < 0 && !qp.is_equality(i) ? 0.0 : fabs(b[i]);
        if (gram[i][i] > 0) {
            qp.present |= 1u << i;
            inverse_norm[i] = 1 / sqrt(gram[i][i]);
            unit = larger(unit, limited(positive * inverse_norm[i], DBL_MAX));
        } else if (positive > 0) {
            solution.feasible = false, solution.short_of |= 1u << i;
        }
    }
    if (unit == 0) return solution;

    double sq_demands = 0;
    UX_ROLLED
    for (int i = 0; i < n; ++i) {
        if (!(qp.present >> i & 1)) continue;
        // Steps are shorter than ρ, so demands below −ρ are always met.
        qp.demand[i] = limited(b[i] * inverse_norm[i] / unit, kSlackPrice);
        if (qp.demand[i] > 0 || qp.is_equality(i)) sq_demands += qp.demand[i] * qp.demand[i];
        UX_ROLLED
        for (int j = 0; j < i; ++j)
            if (qp.present >> j & 1)
                qp.gram[i][j] = qp.gram[j][i] = limited(gram[i][j] * inverse_norm[i] * inverse_norm[j], 1.0);
        qp.gram[i][i] = 1;
    }

    // The second pass is the problem with slacks. One call, so that the compiler inlines it once.
    double unit_lambda[kMaxConstraints];
    UX_ROLLED
    for (int pass = 0; pass < 2; ++pass) {
        qp.slack = pass == 0 ? 0.0 : 1 / kSlackPrice;
        UX_ROLLED
        for (int i = 0; i < n; ++i) unit_lambda[i] = 0;
        const bool solved = solve_unit(qp, unit_lambda, solution.iterations);
        if (solved && sq_step(qp, unit_lambda) <= 0.25 * kSlackPrice * sq_demands) break;
        solution.feasible = false;
    }

    qp.slack = 0;
    const double step = sqrt(sq_step(qp, unit_lambda));
    UX_ROLLED
    for (int i = 0; i < n; ++i) {
        if (!(qp.present >> i & 1)) continue;
        const double rounding = kQpRounding * kSlackPrice * qp.magnitude(i, unit_lambda);  // of λ in the step
        const double smallest = larger(rounding, kReportedShortfall * larger(fabs(qp.demand[i]), step));
        if (qp.violation(i, unit_lambda) > smallest) solution.short_of |= 1u << i;
        if (unit_lambda[i] != 0) lambda[i] = unit_lambda[i] * unit * inverse_norm[i];
    }
    return solution;
}

}  // namespace ux
