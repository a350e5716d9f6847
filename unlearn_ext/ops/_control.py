"""The control functions ψ in plain Python: ``csrc/control.h``, whose comments explain what is remembered and why."""

from dataclasses import dataclass
from math import inf, isnan, pow, sqrt

from .layout import Control, Kind, Report

__all__ = ["Measured", "fresh_weight", "required_decrease"]

FORGET = 0.1
MIN_SIGNAL = 0.02

Numbers = list[float]


@dataclass
class Measured:
    """What one step measures of a constraint; sums with ``lr`` are weighted by the learning rates μ_k.

    Attributes:
        value: c.
        mean_lr: the μ of Ψ = μψ.
        sq_constraint: ⟨a,P⁻¹a⟩.
        lr_sq_constraint: Σμ⟨a,P⁻¹a⟩.
        lr_dot: Σμ⟨a,d⟩.
        lr_aligned: Σμ⟨∇c,P⁻¹a₋⟩ with the a₋ of the step before.
        lr_power: Σμ⟨∇c,P⁻¹∇c⟩.
    """

    value: float
    mean_lr: float
    sq_constraint: float
    lr_sq_constraint: float
    lr_dot: float
    lr_aligned: float
    lr_power: float


def fresh_weight(control: Numbers, report: Numbers) -> float:
    """Return the weight of ∇c in its average in this step."""
    decay, count = control[Control.DECAY], report[Report.COUNT]
    if decay == 0 or count == 0:
        return 1.0
    if isnan(decay):
        return max(report[Report.SIGNAL], 1 / (count + 1))
    return (1 - decay) / (1 - pow(decay, count + 1))


def required_decrease(control: Numbers, m: Measured, state: Numbers) -> float:
    """Return Ψ = μψ, the first-order decrease of c that is required of this step.

    Args:
        control: the constraint's row of ``control``.
        m: what the step measured.
        state: a copy of the constraint's row of ``report``, which is updated.
    """
    if isnan(control[Control.DECAY]) and state[Report.COUNT] > 0:
        _measure_noise(m, state)
    decrease = m.mean_lr * control[Control.GIVEN_PSI]
    if control[Control.KIND] == Kind.GRADIENT_NORM:
        decrease = m.mean_lr * control[Control.ALPHA] * _power(m.sq_constraint, 0.5 * control[Control.DELTA])
        decrease = min(decrease, control[Control.CAP] * m.lr_sq_constraint)
    if control[Control.KIND] == Kind.EPSILON_GAP:
        decrease = _close_gap(control, m, state)
    state[Report.COUNT] += 1
    return decrease


def _close_gap(control: Numbers, m: Measured, state: Numbers) -> float:
    alpha, epsilon, delta = control[Control.ALPHA], control[Control.EPSILON], control[Control.DELTA]
    rate = control[Control.RATE] if isnan(alpha) else m.mean_lr * alpha
    if state[Report.COUNT] == 0:
        state[Report.MODEL] = m.value
        state[Report.INTEGRAL] = state[Report.SATURATED] = state[Report.FIRST_REACH] = 0.0
    cap = _largest_demand(control, m, rate, state)
    _measure_gap(control, m, rate, state)
    if delta == 1 and control[Control.INTEGRATES]:
        _measure_pull(m, rate, epsilon, cap, state)
        decrease = _follow_model(control, m, rate, cap, state)
    else:
        gap = m.value - epsilon
        demand = rate * (-1.0 if gap < 0 else 1.0) * _power(abs(gap), delta)
        decrease = _clamp(demand, -cap, cap) if control[Control.EQUALITY] else min(demand, cap)
        state[Report.MODEL], state[Report.SATURATED] = m.value, float(demand >= cap)
    state[Report.EPSILON_BEFORE] = epsilon
    return decrease


def _approach(state: Numbers, mean: Report, value: float, weight: float) -> None:
    state[mean] += weight * (value - state[mean])


def _power(x: float, p: float) -> float:
    try:
        return x**p
    except OverflowError:  # in C++ it is infinite, which skips the step
        return inf


def _clamp(x: float, low: float, high: float) -> float:
    return low if x < low else high if x > high else x


def _measure_noise(m: Measured, state: Numbers) -> None:
    weight = 1.0 if state[Report.COUNT] == 1 else max(state[Report.SIGNAL], FORGET)
    _approach(state, Report.ALIGNED, m.lr_aligned, weight)
    _approach(state, Report.POWER, m.lr_power, weight)
    power = state[Report.POWER]
    state[Report.SIGNAL] = _clamp(abs(state[Report.ALIGNED]) / power, MIN_SIGNAL, 1.0) if power > 0 else 1.0


def _largest_demand(control: Numbers, m: Measured, rate: float, state: Numbers) -> float:
    if not isnan(control[Control.CAP]):
        return control[Control.CAP] * m.lr_sq_constraint
    epsilon, model = control[Control.EPSILON], state[Report.MODEL]
    state[Report.FIRST_REACH] = max(state[Report.FIRST_REACH], m.mean_lr)
    if state[Report.COUNT] == 0 or model - epsilon > 2 * max(model - state[Report.EPSILON_BEFORE], 0.0):
        gap = abs(m.value - epsilon) if control[Control.EQUALITY] else m.value - epsilon
        demand = rate * gap / m.sq_constraint if m.sq_constraint > 0 else 0.0
        state[Report.REACH] = state[Report.FIRST_REACH] = max(state[Report.FIRST_REACH], demand)
    elif state[Report.SATURATED] and state[Report.POWER] > 0:
        agreement = state[Report.ALIGNED] / state[Report.POWER]
        factor = 2.0 if agreement >= 1 else _clamp(1 / (1 - agreement), 0.5, 2.0)
        state[Report.REACH] = min(state[Report.FIRST_REACH], state[Report.REACH] * factor)
    return state[Report.REACH] * m.sq_constraint


def _measure_pull(m: Measured, rate: float, epsilon: float, cap: float, state: Numbers) -> None:
    pull = rate * (m.value - epsilon) - m.lr_dot
    if state[Report.COUNT] == 0:
        state[Report.PULL_NOISE], state[Report.MEAN_PULL], state[Report.ROOM] = 0.0, pull, cap
    else:
        _approach(state, Report.PULL_NOISE, abs(pull - state[Report.PULL]), FORGET)
        _approach(state, Report.MEAN_PULL, pull, FORGET)
        _approach(state, Report.ROOM, cap, FORGET)
    state[Report.PULL] = pull


def _follow_model(control: Numbers, m: Measured, rate: float, cap: float, state: Numbers) -> float:
    epsilon, r, room = control[Control.EPSILON], state[Report.MODEL], state[Report.ROOM]
    equality, lag = bool(control[Control.EQUALITY]), m.value - r
    closing = rate * (r - epsilon)
    want = _clamp(closing, -room, room) if equality else closing
    demanded = want + state[Report.INTEGRAL]
    saturated = (abs(demanded) if equality else demanded) >= room
    increment = 0.0 if abs(r - epsilon) > abs(lag) else _clamp(rate * rate / 4 * lag, -room / 4, room / 4)
    above = max(0.0, room - (abs(want) if equality else max(want, 0.0)))
    below = above if equality else min(max(0.0, 3 * state[Report.PULL_NOISE] + state[Report.MEAN_PULL]), 2 * room)
    integral = state[Report.INTEGRAL] = _clamp(state[Report.INTEGRAL] + increment, -below, above)
    state[Report.SATURATED] = float(saturated)

    state[Report.MODEL] = r - min(want, room) + (rate * lag if saturated else 0.0)
    base = _clamp(want + integral, -cap, cap) if equality else min(want + integral, cap)
    swing = cap - (abs(base) if equality else base)
    if abs(rate * lag) <= swing and base == closing + integral:
        return rate * (m.value - epsilon) + integral
    return base + _clamp(rate * lag, -swing, swing)


def _measure_gap(control: Numbers, m: Measured, rate: float, state: Numbers) -> None:
    epsilon = control[Control.EPSILON]
    starts = state[Report.COUNT] == 0 or epsilon != state[Report.EPSILON_BEFORE]
    if starts:
        state[Report.GAP_STEPS] = state[Report.GAP] = state[Report.GAP_NOISE] = 0.0
    _approach(state, Report.GAP, m.value - epsilon, max(1 / (state[Report.GAP_STEPS] + 1), rate / 10))
    _approach(state, Report.GAP_NOISE, abs(m.value - state[Report.MODEL]), FORGET)
    state[Report.GAP_STEPS] += 1
    gap, noise = state[Report.GAP], 2 * state[Report.GAP_NOISE] * sqrt(rate / 20)
    arrived = abs(state[Report.MODEL] - epsilon) <= abs(gap) or state[Report.SATURATED] != 0
    far = abs(gap) > max(0.05 * abs(epsilon), noise)
    inactive = gap < 0 and not control[Control.EQUALITY]
    counts = arrived and far and not inactive and not starts
    state[Report.UNSETTLED] = state[Report.UNSETTLED] + 1 if counts else 0.0
