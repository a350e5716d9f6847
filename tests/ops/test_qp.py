"""The dual QP of a step against an independent solver and its optimality conditions, in numpy and in C++."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from steps import needs_kernels

from unlearn_ext.ops import _qp, extension


def solve_in_cpp(gram, b, is_equality):
    equalities = sum(1 << i for i, flag in enumerate(is_equality) if flag)
    multipliers, feasible, short_of, iterations = extension.kernels.solve_dual(np.ravel(gram), b, equalities)
    assert iterations <= 8 * len(b)  # far below the limit that ends a cycle
    return _qp.Solution(np.array(multipliers), feasible, np.array([bool(short_of >> i & 1) for i in range(len(b))]))


SOLVERS = [pytest.param(_qp.solve_dual, id="numpy"), pytest.param(solve_in_cpp, id="C++", marks=needs_kernels)]
each_solver = pytest.mark.parametrize("solve", SOLVERS)


@dataclasses.dataclass
class Problem:
    """Normals a_i as rows (P = I), demands b_i = ψ_i − ⟨a_i, d⟩, and which are equalities."""

    normals: np.ndarray
    b: np.ndarray
    is_equality: np.ndarray

    @property
    def gram(self):
        return self.normals @ self.normals.T

    def in_units(self):
        """Scale the normals to norm 1 and the largest demand to 1."""
        norms = np.linalg.norm(self.normals, axis=1)
        kept = norms > 0
        normals, b = self.normals[kept] / norms[kept, None], self.b[kept] / norms[kept]
        unit = np.where(self.is_equality[kept], np.abs(b), np.maximum(b, 0)).max(initial=0) or 1.0
        return Problem(normals, b / unit, self.is_equality[kept]), norms[kept] / unit, kept

    def permuted(self, order):
        return Problem(self.normals[order], self.b[order], self.is_equality[order])

    def with_slacks(self):
        slacks = np.eye(len(self.b)) / np.sqrt(_qp.SLACK_PRICE)
        return Problem(np.hstack([self.normals, slacks]), self.b, self.is_equality)

    def longest_step(self):
        """Return the length above which a step has slacks."""
        demands = np.where(self.is_equality, self.b, np.maximum(self.b, 0))
        return 0.5 * np.sqrt(_qp.SLACK_PRICE) * np.linalg.norm(demands)


def problem(normals, b, equalities=()):
    is_equality = np.zeros(len(b), bool)
    is_equality[list(equalities)] = True
    return Problem(np.array(normals, float), np.array(b, float), is_equality)


def random_problem(rng, n, dim, n_equalities=0):
    return problem(rng.standard_normal((n, dim)), 2 * rng.standard_normal(n), rng.permutation(n)[:n_equalities])


def least_step(p):
    """Return the shortest x with ⟨a_i, x⟩ ≥ b_i, or None, by scipy's NNLS (Lawson and Hanson, chapter 23)."""
    normals = np.vstack([p.normals, -p.normals[p.is_equality]])
    b = np.concatenate([p.b, -p.b[p.is_equality]])
    system, right = np.vstack([normals.T, b]), np.eye(normals.shape[1] + 1)[-1]
    solution, _ = scipy.optimize.nnls(system, right, maxiter=10000)
    residual = system @ solution - right
    return -residual[:-1] / residual[-1] if residual[-1] < -1e-9 else None


def violations(p, multipliers):
    """Return how far multipliers in units are from optimal: the largest violation of a condition, relative to λ."""
    residual = p.b - p.normals @ (p.normals.T @ multipliers)
    scale = np.abs(p.b).max() + np.abs(multipliers).sum() or 1.0
    unmet = np.where(p.is_equality, np.abs(residual), residual)
    complementarity = np.where(p.is_equality, 0, np.minimum(multipliers, -residual))  # at most one is not zero
    negative = np.where(p.is_equality, 0, -multipliers)
    return max(unmet.max(), complementarity.max(), negative.max()) / scale


def check(p, solution, rounding=1e-12):
    """Check optimality of the problem or, if it is not feasible, of the problem with slacks."""
    unit, scale, kept = p.in_units()
    multipliers = solution.multipliers[kept] * scale
    assert np.all(solution.multipliers[~kept] == 0)
    if not kept.any():
        return
    target = unit if solution.feasible else unit.with_slacks()
    assert violations(target, multipliers) <= rounding
    step = unit.normals.T @ multipliers
    assert np.linalg.norm(step) <= unit.longest_step() * (1 + 1e-9)
    if solution.feasible:
        assert not solution.short_of.any()


@each_solver
@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("share", [0, 0.3, 1], ids=["inequalities", "both", "equalities"])
def test_random_problems_equal_nnls(solve, n, share):
    rng = np.random.default_rng(n)
    for _ in range(30):
        p = random_problem(rng, n, 40, n_equalities=round(share * n))
        solution = solve(p.gram, p.b, p.is_equality)
        assert solution.feasible
        check(p, solution)
        np.testing.assert_allclose(p.normals.T @ solution.multipliers, least_step(p), rtol=0, atol=1e-9)


@each_solver
@pytest.mark.parametrize("n", range(2, 9))
def test_crowded_problems_equal_nnls(solve, n):
    """In three dimensions, demands often contradict each other or need a long step."""
    rng, outcomes = np.random.default_rng(n), set()
    for _ in range(100):
        p = random_problem(rng, n, 3, n_equalities=rng.integers(0, 2))
        solution = solve(p.gram, p.b, p.is_equality)
        check(p, solution)
        unit, scale, _ = p.in_units()
        exact = least_step(unit)
        length = np.inf if exact is None else np.linalg.norm(exact)
        if abs(length - unit.longest_step()) > 1e-6:
            assert solution.feasible == (length < unit.longest_step())
        expected = exact if solution.feasible else least_step(unit.with_slacks())[:3]
        step = unit.normals.T @ (solution.multipliers * scale)
        np.testing.assert_allclose(step, expected, rtol=1e-6, atol=1e-6)
        outcomes.add(solution.feasible)
    assert n < 5 or outcomes == {True, False}


@each_solver
@pytest.mark.parametrize("n_equalities", [0, 2])
def test_gradients_from_1e_minus_15_to_1e15(solve, n_equalities):
    rng = np.random.default_rng(0)
    for _ in range(100):
        p = random_problem(rng, 8, 40, n_equalities)
        scales = 10.0 ** rng.uniform(-15, 15, 8)
        scaled = Problem(p.normals * scales[:, None], p.b * scales, p.is_equality)
        solution = solve(scaled.gram, scaled.b, scaled.is_equality)
        check(scaled, solution)
        expected = solve(p.gram, p.b, p.is_equality).multipliers
        np.testing.assert_allclose(solution.multipliers * scales, expected, rtol=1e-9, atol=1e-12)


@each_solver
def test_the_order_changes_only_rounding(solve):
    rng = np.random.default_rng(0)
    for dim, _ in itertools.product((3, 40), range(50)):
        p, order = random_problem(rng, 6, dim, n_equalities=2), rng.permutation(6)
        permuted = p.permuted(order)
        here, there = solve(p.gram, p.b, p.is_equality), solve(permuted.gram, permuted.b, permuted.is_equality)
        np.testing.assert_allclose(there.multipliers, here.multipliers[order], rtol=1e-7, atol=1e-9)
        assert here.feasible == there.feasible
        assert np.array_equal(there.short_of, here.short_of[order])


@each_solver
@pytest.mark.parametrize(
    ("sq_norm", "b", "is_equality", "expected"),
    [(3.0, 0.7, False, 0.7 / 3.0), (3.0, -0.7, False, 0), (3.0, -0.7, True, -0.7 / 3.0), (1e-300, 7e-301, False, 0.7)],
)
def test_one_constraint_is_the_closed_form(solve, sq_norm, b, is_equality, expected):
    assert solve([[sq_norm]], [b], [is_equality]).multipliers[0] == expected


# Cases without a unique λ, or without a solution: normals, demands, equalities, step x, and who is short.
E1, E2 = (1, 0), (0, 1)
SPECIAL = {
    "duplicate": ([E1, E1], [1, 1], [], (1, 0), []),
    "duplicate of another length": ([E1, (5, 0)], [1, 10], [], (2, 0), []),
    "the weaker first": ([E1, E1, E1], [1, 2, 3], [], (3, 0), []),
    "the stronger first": ([E1, E1, E1], [3, 2, 1], [], (3, 0), []),
    "duplicate equalities": ([E1, E1], [-1, -1], [0, 1], (-1, 0), []),
    "equality above an inequality": ([E1, E1], [2, 1], [0], (2, 0), []),
    "opposite and consistent": ([E1, (-1, 0)], [1, -2], [], (1, 0), []),
    "an equality as two inequalities": ([E1, (-1, 0)], [1, -1], [], (1, 0), []),
    "opposite and contradicting": ([E1, (-1, 0)], [1, 0.5], [], (0.25, 0), [0, 1]),
    "contradicting equalities": ([E1, E1], [1, 0], [0, 1], (0.5, 0), [0, 1]),
    "inequality against an equality": ([E1, (-1, 0), E2], [1, 0, 1], [0], (0.5, 1), [0, 1]),
    "triangle": ([E1, (-0.5, 0.75**0.5), (-0.5, -(0.75**0.5))], [1, 1, 1], [], (0, 0), [0, 1, 2]),
    "a third is independent": ([E1, (-1, 0), E2], [1, 1, 3], [], (0, 3), [0, 1]),
    "implied by two": ([E1, E2, (1, 1)], [1, 1, 2], [], (1, 1), []),
    "stronger than two": ([E1, E2, (1, 1)], [1, 1, 4], [], (2, 2), []),
    "zero gradient": ([(0, 0), E2], [1, 1], [], (0, 1), [0]),
    "zero gradient, met": ([(0, 0), E2], [0, 1], [], (0, 1), []),
    "all zero": ([(0, 0), (0, 0)], [1, -1], [], (0, 0), [0]),
    "equality without gradient": ([(0, 0), E1], [-1, -1], [0], (0, 0), [0]),
    "all met": ([E1, E2], [-1, 0], [], (0, 0), []),
    "nothing demanded by an equality": ([E1, (1, 1)], [0, 1], [0], (0, 1), []),
}


@each_solver
@pytest.mark.parametrize("case", SPECIAL)
def test_special_cases(solve, case):
    normals, b, equalities, expected, short_of = SPECIAL[case]
    for scale in (1.0, 1e-12, 1e12):
        p = problem(scale * np.array(normals, float), scale * np.array(b), equalities)
        solution = solve(p.gram, p.b, p.is_equality)
        tolerance = 1e-12 if not short_of else 2 / _qp.SLACK_PRICE * (1 + np.abs(b).max())
        np.testing.assert_allclose(p.normals.T @ solution.multipliers, expected, rtol=0, atol=tolerance)
        assert np.flatnonzero(solution.short_of).tolist() == short_of
        assert solution.feasible == (not short_of)


@each_solver
def test_near_contradictions_take_no_huge_step(solve):
    """As two normals become opposite, the step grows to its limit and ends at that of a contradiction."""
    lengths = []
    for angle in 10.0 ** np.arange(-0.5, -10, -0.25):
        p = problem([(1, 0), (-np.cos(angle), np.sin(angle))], [1, 1])
        solution = solve(p.gram, p.b, p.is_equality)
        check(p, solution)
        assert np.array_equal(solution.short_of, [not solution.feasible] * 2)
        lengths.append(np.linalg.norm(p.normals.T @ solution.multipliers))
    assert max(lengths) > 40
    assert lengths[-1] < 1e-3


@each_solver
def test_a_difference_below_float32s_noise_is_not_amplified(solve):
    """Two normals 3e-4 apart cannot be told from one: their demands are averaged, although a step of 3.5 meets both."""
    p = problem([(1, 0), (np.cos(3e-4), np.sin(3e-4))], [1, 1.001], [0, 1])
    solution = solve(p.gram, p.b, p.is_equality)
    np.testing.assert_allclose(p.normals.T @ solution.multipliers, [1.0005, 0], rtol=0, atol=3e-3)


@each_solver
@pytest.mark.parametrize("noise", [1e-8, 1e-7])
def test_float32_noise_in_gram_contradicts_nobody(solve, noise):
    """Duplicates and opposites whose G has the error of float32 sums."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        basis = rng.standard_normal((3, 50))
        signs = rng.choice([-1.0, 1.0], 3)
        normals = np.vstack([basis, signs[:, None] * basis])
        x = rng.standard_normal(50)
        b = normals @ x
        error = 1 + noise * rng.standard_normal((6, 6))
        solution = solve(normals @ normals.T * error, b, [False] * 6)
        reached = normals @ (normals.T @ solution.multipliers)
        norms = np.linalg.norm(normals, axis=1)
        assert np.all(reached >= b - 2e-3 * norms * np.abs(b / norms).max())
        assert not solution.short_of.any()


@each_solver
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_input_gives_nan(solve, value):
    for n, at in itertools.product((1, 3), range(3)):
        gram, b = np.eye(n), np.ones(n)
        (gram.reshape(-1) if at < 2 else b)[-1 if at else 0] = value
        solution = solve(gram, b, [False] * n)
        assert np.isnan(solution.multipliers).all()
        assert not solution.feasible


integer_problems = st.integers(1, 8).flatmap(
    lambda n: st.builds(
        Problem,
        st.integers(1, 4).flatmap(lambda dim: hnp.arrays(np.float64, (n, dim), elements=st.integers(-2, 2))),
        hnp.arrays(np.float64, n, elements=st.integers(-3, 3)),
        hnp.arrays(bool, n),
    )
)


@each_solver
@settings(max_examples=300, deadline=None)
@given(p=integer_problems)
def test_degenerate_problems(solve, p):
    """Small integers: many normals are parallel, opposite, zero or dependent, and many demands tie."""
    solution = solve(p.gram, p.b, p.is_equality)
    has_unmet_zero = np.any((np.abs(p.normals).sum(1) == 0) & np.where(p.is_equality, p.b != 0, p.b > 0))
    if has_unmet_zero:
        assert not solution.feasible
        assert solution.short_of.any()
        return
    check(p, solution, rounding=1e-9)
    unit, _, kept = p.in_units()
    if kept.any():
        exact = least_step(unit)
        if exact is not None and np.linalg.norm(exact) <= 0.999 * unit.longest_step():
            assert solution.feasible


@needs_kernels
@settings(max_examples=300, deadline=None)
@given(p=integer_problems)
def test_both_solvers_take_the_same_step(p):
    one, other = (solve(p.gram, p.b, p.is_equality) for solve in (_qp.solve_dual, solve_in_cpp))
    assert one.feasible == other.feasible
    assert np.array_equal(one.short_of, other.short_of)
    np.testing.assert_allclose(p.normals.T @ one.multipliers, p.normals.T @ other.multipliers, rtol=1e-7, atol=1e-7)


def test_more_constraints_than_the_kernels_take():
    p = random_problem(np.random.default_rng(0), 30, 100, n_equalities=3)
    solution = _qp.solve_dual(p.gram, p.b, p.is_equality)
    assert solution.feasible
    check(p, solution)
