"""The dual quadratic program of a step with several constraints: ``csrc/qp.h`` in numpy, for any number of them.

The header explains the method, the units and what happens if demands contradict each other. Both must give the same
active set, so every tolerance and every branch here has its counterpart there.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MIN_PIVOT = 1e-6
SLACK_PRICE = 1e4
SHORTFALL = 1e-3
ROUNDING = 1e-14
ITERATIONS_PER_CONSTRAINT = 32


@dataclass
class Solution:
    """The multipliers of a step.

    Attributes:
        multipliers: λ, float64 ``[n]``; NaN if an input is NaN or infinite.
        feasible: whether a step meets all demands. If not, λ is that of the problem with slacks.
        short_of: which constraints miss their demand by more than ``SHORTFALL``, bool ``[n]``.
    """

    multipliers: Array
    feasible: bool
    short_of: npt.NDArray[np.bool_]


@dataclass
class _UnitQp:
    """The problem in units in which every normal has norm 1 and the largest demand is 1."""

    gram: Array
    demand: Array
    is_equality: npt.NDArray[np.bool_]
    slack: float = 0.0

    def residual(self, multipliers: Array) -> Array:
        return self.demand - self.gram @ multipliers - self.slack * multipliers

    def violation(self, multipliers: Array) -> Array:
        residual = self.residual(multipliers)
        return np.where(self.is_equality, np.abs(residual), residual)

    def magnitude(self, multipliers: Array) -> Array:
        return np.abs(self.demand) + float(np.abs(multipliers).sum())

    def block(self, members: list[int]) -> Array:
        return self.gram[np.ix_(members, members)] + self.slack * np.eye(len(members))


def solve_dual(gram: npt.ArrayLike, b: npt.ArrayLike, is_equality: npt.ArrayLike) -> Solution:
    """Minimize ½λᵀGλ − λᵀb over λ_i ≥ 0, with λ_i free for an equality.

    A constraint without gradient (G_ii = 0) has λ_i = 0 and is short if it demands something.

    Args:
        gram: G_ij = ⟨a_i, P⁻¹a_j⟩, float64 ``[n, n]``; its lower triangle is read.
        b: ψ_i − ⟨a_i, d⟩, float64 ``[n]``: what each constraint demands of the step at λ = 0.
        is_equality: bool ``[n]``.
    """
    lower, b = np.tril(np.asarray(gram, np.float64)), np.asarray(b, np.float64)
    is_equality = np.asarray(is_equality, bool)
    if not (np.isfinite(lower).all() and np.isfinite(b).all()):
        return Solution(np.full(len(b), np.nan), False, np.zeros(len(b), bool))

    squares = np.diag(lower)
    present = np.flatnonzero(squares > 0)
    positive = np.where(is_equality, np.abs(b), np.maximum(b, 0.0))
    short_of = (squares <= 0) & (positive > 0)
    feasible = not short_of.any()
    multipliers = np.zeros(len(b))
    if len(b) == 1:  # the closed form, without the rounding of other units
        if squares[0] > 0:
            multipliers[0] = b[0] / squares[0]
        if multipliers[0] < 0 and not is_equality[0]:
            multipliers[0] = 0.0
        return Solution(multipliers, feasible, short_of)

    inverse_norm = 1 / np.sqrt(squares[present])
    limit = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        unit = max((positive[present] * inverse_norm).clip(max=limit), default=0.0)
        if unit == 0:
            return Solution(multipliers, feasible, short_of)
        # Steps are shorter than ρ, so demands below −ρ are always met.
        demand = (b[present] * inverse_norm / unit).clip(-SLACK_PRICE, SLACK_PRICE)
        scaled = lower[np.ix_(present, present)] * inverse_norm[:, None] * inverse_norm
    strict = np.tril(scaled.clip(-1.0, 1.0), -1)
    qp = _UnitQp(strict + strict.T + np.eye(len(present)), demand, is_equality[present])

    has_solution, solution = _solve_unit(qp)
    demands = np.where(qp.is_equality | (demand > 0), demand, 0.0)
    if not has_solution or _sq_step(qp, solution) > 0.25 * SLACK_PRICE * (demands @ demands):
        feasible = False
        qp.slack = 1 / SLACK_PRICE
        _, solution = _solve_unit(qp)

    qp.slack = 0.0
    rounding = ROUNDING * SLACK_PRICE * qp.magnitude(solution)  # of λ in the step
    relevant = SHORTFALL * np.maximum(np.abs(demand), math.sqrt(_sq_step(qp, solution)))
    short_of[present] = qp.violation(solution) > np.maximum(rounding, relevant)
    with np.errstate(over="ignore"):
        multipliers[present] = np.where(solution == 0, 0.0, solution * unit * inverse_norm)
    return Solution(multipliers, feasible, short_of)


def _sq_step(qp: _UnitQp, multipliers: Array) -> float:
    """Return the squared norm of g − d."""
    return max(float(multipliers @ qp.gram @ multipliers), 0.0)


def _solve_unit(qp: _UnitQp) -> tuple[bool, Array]:
    """Return whether a λ was found that meets all demands, and λ; with a slack it always does."""
    n = len(qp.demand)
    multipliers = np.zeros(n)
    members: list[int] = []  # the active constraints
    implied: set[int] = set()  # demands that are met because the active ones are
    p, sign = -1, 1.0  # the constraint that is being added, and the sign of its multiplier
    for _ in range(ITERATIONS_PER_CONSTRAINT * n):
        is_new = p < 0
        if is_new:
            p = _next_constraint(qp, members, implied, multipliers)
            if p < 0:
                return True, multipliers
            sign = -1.0 if qp.residual(multipliers)[p] < 0 else 1.0

        # While λ_p grows by t, the active λ change by −t·change, which keeps their demands met.
        change = sign * _solve_block(qp, members, qp.gram[members, p])
        pivot = qp.gram[p, p] + qp.slack - sign * float(qp.gram[members, p] @ change)
        violation = sign * float(qp.residual(multipliers)[p])
        full = violation / pivot if pivot > 0 else math.inf  # the t that meets demand p
        reach, blocking = _first_zero(qp, members, multipliers, change)
        is_blocked = blocking >= 0 and reach <= full
        is_huge = (reach if is_blocked else full) > 2 * SLACK_PRICE * n
        if is_huge or (pivot < MIN_PIVOT and not is_blocked):
            is_met = violation <= MIN_PIVOT * qp.magnitude(multipliers)[p]
            if not is_new or not is_met:
                return False, multipliers
            implied.add(p)
            p = -1
        elif is_blocked:
            moved = multipliers[members] - reach * change
            multipliers[members] = np.where(qp.is_equality[members], moved, np.maximum(moved, 0.0))
            multipliers[members[blocking]] = 0.0
            multipliers[p] += sign * reach
            del members[blocking]
            implied.clear()
        else:
            members.append(p)
            solution = _solve_block(qp, members, qp.demand[members])
            multipliers[members] = np.where(qp.is_equality[members], solution, np.maximum(solution, 0.0))
            p = -1
    return False, multipliers


def _solve_block(qp: _UnitQp, members: list[int], right: Array) -> Array:
    """Solve the active block of G for one right-hand side."""
    return np.asarray(np.linalg.solve(qp.block(members), right), np.float64)


def _first_zero(qp: _UnitQp, members: list[int], multipliers: Array, change: Array) -> tuple[float, int]:
    """Return the t at which an active inequality's λ becomes zero, and its position; ``(inf, -1)`` if none does."""
    reach, blocking = math.inf, -1
    for position, member in enumerate(members):
        if qp.is_equality[member] or change[position] <= 0:
            continue
        if multipliers[member] < reach * change[position]:
            reach, blocking = multipliers[member] / change[position], position
    return reach, blocking


def _next_constraint(qp: _UnitQp, members: list[int], implied: set[int], multipliers: Array) -> int:
    """Return the first equality not yet added, else the most violated constraint, else -1."""
    violation, magnitude = qp.violation(multipliers), qp.magnitude(multipliers)
    worst, largest = -1, 0.0
    for i in range(len(violation)):
        if i in members:
            continue
        if qp.is_equality[i] and i not in implied:
            return i
        tolerance = (MIN_PIVOT if i in implied else ROUNDING) * magnitude[i]
        if violation[i] > largest and violation[i] > tolerance:
            worst, largest = i, violation[i]
    return worst
