// The control functions ψ, shared by all devices: how much each constraint must decrease in this step. One constraint at a
// time, in double precision. docs/theory.md derives them.
#pragma once
#include <cmath>

#include "tensors.h"

namespace ux {

// Columns of `control`; row 0 has only kMaxNorm, row 1 + i is that of a constraint.
enum Control {
    kKind,
    kEpsilon,
    kAlpha,  // NaN: kRate is used instead
    kRate,
    kDelta,
    kCap,         // NaN: chosen by the first demand
    kIntegrates,  // whether noise is compensated; false: ψ is exactly the control function
    kGivenPsi,
    kEquality,
    kLambdaMax,
    kDecay,  // of the average of ∇c; 0: no average, NaN: chosen by the measured noise
    kControl
};
constexpr int kMaxNorm = 0;
enum Kind { kGiven = 0, kGradientNorm = 1, kEpsilonGap = 2 };

// Columns of `report` in the row of a constraint. c is input. From kCount on, values persist from step to step: they are
// what the control remembers.
enum Report {
    kConstraint,
    kPsi,
    kLambda,
    kMultiplier,
    kDot,
    kSqConstraint,
    kShortfall,
    kFresh,          // weight of ∇c in its average
    kCount,          // steps with this constraint
    kSignal,         // share of ∇c that is not noise
    kAligned,        // running mean of ⟨∇c,P⁻¹a⟩, a from the step before
    kPower,          // running mean of ⟨∇c,P⁻¹∇c⟩
    kModel,          // value that c would have if it did what was demanded
    kEpsilonBefore,  // ε of the step before
    kReach,          // longest step along P⁻¹a, relative to a
    kFirstReach,     // its upper limit
    kRoom,           // running mean of the cap
    kPull,           // rate·(c − ε) − ⟨a,d⟩ of the step before
    kMeanPull,       // its running mean
    kPullNoise,      // running mean of its changes
    kIntegral,
    kSaturated,  // whether the demand exceeded the room
    kGap,        // running mean of c − ε
    kGapNoise,   // running mean of |c − model|
    kGapSteps,   // steps in kGap
    kUnsettled,  // steps in a row in which kGap was too large
    kCarried,    // running mean of λ, which a wrapped optimizer finds in its gradient
    kReport
};
constexpr int kKept = kCount;

// What one step measures of a constraint; sums are over all groups, weighted by the learning rates μ_k where it says so.
struct Measured {
    double value;                 // c
    double mean_lr;               // the μ of Ψ = μψ
    double sq_constraint;         // ⟨a,P⁻¹a⟩
    double lr_sq_constraint;      // Σμ⟨a,P⁻¹a⟩
    double lr_dot;                // Σμ⟨a,d⟩
    double lr_aligned, lr_power;  // Σμ⟨∇c,P⁻¹a₋⟩ with the a₋ of the step before, Σμ⟨∇c,P⁻¹∇c⟩
};

UX_HD double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }
UX_HD double least(double x, double y) { return y < x ? y : x; }
UX_HD double most(double x, double y) { return y > x ? y : x; }
UX_HD double power(double x, double p) { return p == 1.0 ? x : pow(x, p); }  // skips pow for the default exponent
UX_HD bool is_nan(double x) { return x != x; }
UX_HD void approach(double& mean, double value, double weight) { mean += weight * (value - mean); }

constexpr double kForget = 0.1;      // weight of a new value in the running means
constexpr double kMinSignal = 0.02;  // the average of ∇c is over 50 steps or so at most

// The weight of ∇c in its average in this step; known before the step, so that one pass is enough.
UX_HD double fresh_weight(const double* control, const double* report) {
    const double decay = control[kDecay], count = report[kCount];
    if (decay == 0 || count == 0) return 1;
    if (is_nan(decay)) return most(report[kSignal], 1 / (count + 1));
    return (1 - decay) / (1 - pow(decay, count + 1));  // the average with bias correction
}

// Independent noise is not aligned with the average of earlier gradients, so ⟨∇c,P⁻¹a₋⟩/‖∇c‖² is the share of signal.
UX_HD void measure_noise(const Measured& m, double* state) {
    const double weight = state[kCount] == 1 ? 1 : most(state[kSignal], kForget);
    approach(state[kAligned], m.lr_aligned, weight);
    approach(state[kPower], m.lr_power, weight);
    state[kSignal] = state[kPower] > 0 ? clamp(fabs(state[kAligned]) / state[kPower], kMinSignal, 1) : 1;
}

// The largest decrease that may be demanded. If ε cannot be reached, demands without a limit would grow with λ, and c could
// even rise. The limit is a step along P⁻¹a that is no longer than the first demand or a plain gradient step on c; while
// it binds it shrinks if successive gradients turn around, and recovers if they agree.
UX_HD double largest_demand(const double* control, const Measured& m, double rate, double* state) {
    if (!is_nan(control[kCap])) return control[kCap] * m.lr_sq_constraint;
    const double epsilon = control[kEpsilon], model = state[kModel];
    state[kFirstReach] = most(state[kFirstReach], m.mean_lr);
    const bool starts = state[kCount] == 0 || model - epsilon > 2 * most(model - state[kEpsilonBefore], 0);
    if (starts) {
        const double gap = control[kEquality] != 0 ? fabs(m.value - epsilon) : m.value - epsilon;
        const double demand = m.sq_constraint > 0 ? rate * gap / m.sq_constraint : 0;
        state[kReach] = state[kFirstReach] = most(state[kFirstReach], demand);
    } else if (state[kSaturated] != 0 && state[kPower] > 0) {
        const double agreement = state[kAligned] / state[kPower];
        const double factor = agreement >= 1 ? 2 : clamp(1 / (1 - agreement), 0.5, 2);
        state[kReach] = least(state[kFirstReach], state[kReach] * factor);
    }
    return state[kReach] * m.sq_constraint;
}

// Running means of what λ reacts to. They limit how far the integral may fall below zero: not at all without noise, and
// with noise as far as the noise requires.
UX_HD void measure_pull(const Measured& m, double rate, double epsilon, double cap, double* state) {
    const double pull = rate * (m.value - epsilon) - m.lr_dot;
    if (state[kCount] == 0) {
        state[kPullNoise] = 0, state[kMeanPull] = pull, state[kRoom] = cap;
    } else {
        approach(state[kPullNoise], fabs(pull - state[kPull]), kForget);
        approach(state[kMeanPull], pull, kForget);
        approach(state[kRoom], cap, kForget);
    }
    state[kPull] = pull;
}

// PI control around a reference model r of c, which closes `rate` of its own gap in each step. The integral is of c − r,
// not of c − ε, so it stays zero as long as c does what is demanded, and does not wind up on the way to ε.
UX_HD double follow_model(const double* control, const Measured& m, double rate, double cap, double* state) {
    const double epsilon = control[kEpsilon], r = state[kModel], lag = m.value - r, room = state[kRoom];
    const bool equality = control[kEquality] != 0;
    const double closing = rate * (r - epsilon), want = equality ? clamp(closing, -room, room) : closing;
    const bool saturated = (equality ? fabs(want + state[kIntegral]) : want + state[kIntegral]) >= room;
    const double gain = rate * rate / 4;  // critically damped
    const double increment = fabs(r - epsilon) > fabs(lag) ? 0 : clamp(gain * lag, -room / 4, room / 4);
    const double above = most(0, room - (equality ? fabs(want) : most(want, 0)));
    const double below = equality ? above : least(most(0, 3 * state[kPullNoise] + state[kMeanPull]), 2 * room);
    state[kIntegral] = clamp(state[kIntegral] + increment, -below, above);
    state[kSaturated] = saturated ? 1 : 0;

    state[kModel] = r - least(want, room) + (saturated ? rate * lag : 0);
    const double base = equality ? clamp(want + state[kIntegral], -cap, cap) : least(want + state[kIntegral], cap);
    const double swing = cap - (equality ? fabs(base) : base);
    if (fabs(rate * lag) <= swing && base == closing + state[kIntegral])
        return rate * (m.value - epsilon) + state[kIntegral];  // the same, without the rounding of r
    return base + clamp(rate * lag, -swing, swing);            // symmetric, so that noise is not rectified
}

// The running mean of the gap, and for how long it has been too large.
UX_HD void measure_gap(const double* control, const Measured& m, double rate, double* state) {
    const double gap = m.value - control[kEpsilon];
    const bool starts = state[kCount] == 0 || control[kEpsilon] != state[kEpsilonBefore];
    if (starts) state[kGapSteps] = state[kGap] = state[kGapNoise] = 0;
    approach(state[kGap], gap, most(1 / (state[kGapSteps] + 1), rate / 10));
    approach(state[kGapNoise], fabs(m.value - state[kModel]), kForget);
    state[kGapSteps] += 1;
    const double noise = 2 * state[kGapNoise] * sqrt(rate / 20);
    const bool arrived = fabs(state[kModel] - control[kEpsilon]) <= fabs(state[kGap]) || state[kSaturated] != 0;
    const bool far = fabs(state[kGap]) > most(0.05 * fabs(control[kEpsilon]), noise);
    const bool inactive = state[kGap] < 0 && control[kEquality] == 0;
    state[kUnsettled] = arrived && far && !inactive && !starts ? state[kUnsettled] + 1 : 0;
}

UX_HD double signed_power(double x, double p) { return (x < 0 ? -1.0 : 1.0) * power(fabs(x), p); }

// Ψ = μψ, the first-order decrease of c that is required of this step. Updates `state`, the constraint's row of `report`.
UX_HD_CALL double required_decrease(const double* control, const Measured& m, double* state) {
    if (is_nan(control[kDecay]) && state[kCount] > 0) measure_noise(m, state);
    double decrease = m.mean_lr * control[kGivenPsi];
    if (control[kKind] == kGradientNorm) {
        decrease = m.mean_lr * control[kAlpha] * power(m.sq_constraint, 0.5 * control[kDelta]);
        decrease = least(decrease, control[kCap] * m.lr_sq_constraint);
    }
    if (control[kKind] == kEpsilonGap) {
        const double rate = is_nan(control[kAlpha]) ? control[kRate] : m.mean_lr * control[kAlpha];
        if (state[kCount] == 0) state[kModel] = m.value, state[kIntegral] = state[kSaturated] = state[kFirstReach] = 0;
        const double cap = largest_demand(control, m, rate, state);
        measure_gap(control, m, rate, state);
        if (control[kDelta] == 1 && control[kIntegrates] != 0) {
            measure_pull(m, rate, control[kEpsilon], cap, state);
            decrease = follow_model(control, m, rate, cap, state);
        } else {
            const double demand = rate * signed_power(m.value - control[kEpsilon], control[kDelta]);
            decrease = control[kEquality] != 0 ? clamp(demand, -cap, cap) : least(demand, cap);
            state[kModel] = m.value, state[kSaturated] = demand >= cap ? 1 : 0;
        }
        state[kEpsilonBefore] = control[kEpsilon];
    }
    state[kCount] += 1;
    return decrease;
}

}  // namespace ux
