"""The step solves the QP: its definition in float64, on random and on hard cases."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from steps import HYPER, PATHS, cloned, control_of, control_row, operands_like, report_of, run_step, written

from unlearn_ext import ops
from unlearn_ext.ops.layout import Hyper, Operands, Report, Rule, StepReport

F64 = torch.float64
SUBNORMAL = 5e-324  # the smallest positive float64


def project(d, g1, psi, fused=False):
    """Project in the metric I; return g, λ and the step."""
    none = [None] * len(d)
    operands = Operands(none, [t.clone() for t in d], none, none, none, [0] * len(d), [g1])
    step = run_step(Rule.PROJECT, operands, psi, fused)
    return operands.grads, step.report[1, Report.LAMBDA].item(), step


vectors = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(-1e3, 1e3), min_size=n, max_size=n) for _ in range(2)])
)


@settings(max_examples=300, deadline=None)
@given(vectors, st.floats(-1e4, 1e4))
@example(([SUBNORMAL], [-2.0]), 0.0)
def test_definition(pair, psi):
    d, g1 = (torch.tensor(v, dtype=F64) for v in pair)
    (g,), lam, _ = project([d], [g1], psi)
    sq = torch.dot(g1, g1)
    if sq == 0:
        assert lam == 0
        assert torch.equal(g, d)
        return
    if sq < 1e-200:  # squares underflow; no λ is meaningful
        return
    dot = torch.dot(g1, d).item()
    if dot >= psi:
        assert lam == 0
        assert torch.equal(g, d)
    elif lam < 3e38:
        underflow = SUBNORMAL * (sq + g1.abs().sum() + len(g1)).item()  # λ, λ·g1 and each product lose up to one
        slack = 1e-12 * (abs(psi) + abs(dot) + (g1.abs() * g.abs()).sum().item()) + underflow
        assert torch.dot(g1, g).item() >= psi - slack


def metric_of(rule, operands, row=0):
    """Return diag P, d and g1 of a step, from the formulas of the design and not from the code under test."""
    theta, g2, g1 = operands.params[row], operands.grads[row], operands.constraint_grads[0][row]
    h = HYPER[rule]
    if rule is Rule.SGD:
        d = h[Hyper.BETA1] * operands.firsts[row] + (1 - h[Hyper.BETA2]) * (g2 + h[Hyper.WEIGHT_DECAY] * theta)
        return torch.ones_like(d), d, g1
    t = operands.steps[row].item() + 1
    if rule is Rule.WRAP:
        v = h[Hyper.BETA2] * operands.seconds[row] + (1 - h[Hyper.BETA2]) * g2**2
        p = (v / (1 - h[Hyper.BETA2] ** t) + h[Hyper.CONSTRAINT_WEIGHT] * g1**2).sqrt() + h[Hyper.EPS]
        return p, (operands.firsts[row] - theta) / h[Hyper.LR], g1
    m = h[Hyper.BETA1] * operands.firsts[row] + (1 - h[Hyper.BETA1]) * g2
    v = h[Hyper.BETA2] * operands.seconds[row] + (1 - h[Hyper.BETA2]) * (h[Hyper.CONSTRAINT_WEIGHT] * g1**2 + g2**2)
    p = (v / (1 - h[Hyper.BETA2] ** t)).sqrt() + h[Hyper.EPS]
    return p, m / (1 - h[Hyper.BETA1] ** t) / p + h[Hyper.WEIGHT_DECAY] * theta, g1


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAMW, Rule.WRAP])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("psi", [-5.0, 0.0, 3.0, 40.0])
def test_nearest_point_in_the_metric_against_an_independent_solver(rule, seed, psi):
    operands = operands_like(rule, [torch.empty(7)], (F64,) * 5, seed=seed)
    p, d, g1 = (x.numpy() for x in metric_of(rule, operands))
    after = cloned(operands)
    run_step(rule, after, psi, fused=False)
    start = operands.firsts[0] if rule is Rule.WRAP else operands.params[0]
    g = ((start - after.params[0]) / HYPER[rule][Hyper.LR]).numpy()
    solved = minimize(
        lambda x: 0.5 * np.sum(p * (x - d) ** 2),
        d,
        jac=lambda x: p * (x - d),
        hess=lambda x: np.diag(p),
        constraints=LinearConstraint(g1, psi, np.inf),
        method="trust-constr",
        options={"gtol": 1e-12, "xtol": 1e-14, "maxiter": 3000},
    )
    mine = 0.5 * np.sum(p * (g - d) ** 2)
    assert g1 @ g >= psi - 1e-9
    assert mine <= solved.fun * (1 + 1e-6) + 1e-9
    np.testing.assert_allclose(g, solved.x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exponent", range(-15, 16, 3))
def test_scale_covariance(exponent):
    """f1 → s·f1 (with ψ → s·ψ) leaves g unchanged; (d, ψ) → s·(d, ψ) scales g."""
    generator = torch.Generator().manual_seed(3)
    d, g1 = (torch.randn(50, generator=generator, dtype=F64) for _ in range(2))
    s = 10.0**exponent
    (want,), lam, _ = project([d], [g1], 30.0)
    (by_constraint,), lam1, _ = project([d], [g1 * s], 30.0 * s)
    (by_objective,), lam2, _ = project([d * s], [g1], 30.0 * s)
    assert lam > 0
    torch.testing.assert_close(by_constraint, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_objective / s, want, rtol=1e-12, atol=1e-12)
    assert lam1 * s == pytest.approx(lam, rel=1e-12)
    assert lam2 / s == pytest.approx(lam, rel=1e-12)


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("exponent", [-15, -8, 8, 15])
def test_scale_covariance_in_float32(exponent, fused):
    generator = torch.Generator().manual_seed(3)
    d, g1 = (torch.randn(5000, generator=generator) for _ in range(2))
    s = 10.0**exponent
    (want,), lam, _ = project([d], [g1], 3000.0, fused)
    (got,), lam1, _ = project([d], [g1 * s], 3000.0 * s, fused)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert lam1 * s == pytest.approx(lam, rel=1e-5)


@pytest.mark.parametrize("fused", PATHS)
def test_adversarial_directions(fused):
    e = torch.zeros(64)
    e[0] = 1.0
    for d, g1, psi, lam in [
        (-e, e, 1.0, 2.0),  # opposed
        (e, e, 1.0, 0.0),  # exactly on the boundary
        (e.roll(1), e, 1.0, 1.0),  # orthogonal
        (torch.zeros(64), e, 0.0, 0.0),  # nothing to do
        (e, torch.zeros(64), 5.0, 0.0),  # no constraint gradient: infeasible, unchanged
        (e, e * 2.0**-40, 2.0**-40, 0.0),  # powers of two are exact in float32
        (-e, e * 2.0**-40, 2.0**-40, 2.0**41),
    ]:
        (g,), got, _ = project([d], [g1], psi, fused)
        assert got == pytest.approx(lam, rel=1e-6)
        torch.testing.assert_close(g, d + lam * g1)


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("where", ["grads", "constraint_grads"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nothing_is_written_when_anything_is_not_finite(fused, rule, where, poison):
    operands = operands_like(rule, [torch.empty(11), torch.empty(20_001)], (torch.float32,) * 5, seed=5)
    (operands.grads if where == "grads" else operands.constraint_grads[0])[1][12_345] = poison
    before = cloned(operands)
    step = run_step(rule, operands, 0.5, fused)
    assert step.report[0, StepReport.SKIPPED] == 1
    assert step.report[0, StepReport.SKIPPED_STEPS] == 1
    if rule is Rule.WRAP:  # the other optimizer has stepped already; that is undone
        before.params = before.firsts
    pairs = zip(written(rule, before), written(rule, operands), strict=True)
    assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs)
    assert all(s is None or s == 3 for s in operands.steps)


@pytest.mark.parametrize("psi", [float("nan"), float("inf")])
@pytest.mark.parametrize("fused", PATHS)
def test_a_psi_that_is_not_finite_skips_the_step(psi, fused):
    d = torch.ones(5)
    (g,), _, step = project([d], [torch.ones(5)], psi, fused)
    assert step.report[0, StepReport.SKIPPED] == 1
    assert torch.equal(g, d)


def test_the_reference_runs_with_fused_false(monkeypatch):
    monkeypatch.setattr("unlearn_ext.ops._kernels.kernels", None)
    (g,), lam, _ = project([torch.zeros(3)], [torch.ones(3)], 6.0)
    assert lam == 2
    assert torch.equal(g, torch.full((3,), 2.0))


def test_functional_layer():
    d, g1 = [torch.randn(5), torch.randn(3, 2)], [torch.randn(5), torch.randn(3, 2)]
    sqd, dot, sq1 = ops.halfspace_stats(d, g1).tolist()
    flat_d, flat_1 = torch.cat([t.flatten() for t in d]), torch.cat([t.flatten() for t in g1])
    assert dot == pytest.approx(torch.dot(flat_d, flat_1).item(), rel=1e-5)
    assert sq1 == pytest.approx(flat_1.square().sum().item(), rel=1e-5)
    assert sqd == pytest.approx(flat_d.square().sum().item(), rel=1e-5)
    lam, skipped = ops.halfspace_project_(d, g1, torch.tensor(dot + 1.0)).tolist()
    assert skipped == 0
    assert lam == pytest.approx(1 / sq1, rel=1e-5)
    assert ops.halfspace_stats(d, g1)[1].item() == pytest.approx(dot + 1, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float64 has no kernel
@pytest.mark.parametrize("op", ["halfspace_project_", "sgd_step_"])
def test_autograd_detects_the_in_place_writes(op, dtype):
    inputs, kept, g1 = torch.randn(5, dtype=dtype, requires_grad=True), torch.ones(5, dtype=dtype), -torch.ones(5)
    hyper = torch.tensor([[0.1, 0, 0, 0, 0, 0, 0, 1]], dtype=torch.float64)
    others = {
        "halfspace_project_": [torch.tensor(1.0)],
        "sgd_step_": [[], [], [], [], [0], hyper, control_of(), report_of(0)],
    }
    outputs = (inputs * kept).sum()
    getattr(torch.ops.unlearn_ext, op)([kept], [g1.to(dtype)], *others[op])
    assert not torch.equal(kept, torch.ones(5, dtype=dtype))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.backward()


def functional_step(op, fused, *states):
    """Take a functional step of θ = 1 with g2 = 2 and lr = 0.1, updating the states in place; return θ."""
    params, grads, g1 = ([torch.full((3,), value)] for value in (1.0, 2.0, 0.0))
    hyper = torch.tensor([[0.1, 0.9, 0.5, 1e-8, 0, 0, 0, 1]], dtype=torch.float64)
    op(params, grads, g1, *states, [], [0], hyper, control_of(control_row(psi=-1e9)), report_of(1), fused=fused)
    return params[0]


@pytest.mark.parametrize("fused", PATHS)
def test_functional_sgd_has_momentum_and_counts_its_steps(fused):
    first, steps = torch.full((3,), 7.0), torch.tensor(0.0)
    outputs = (first.clone().requires_grad_() * first).sum()
    theta = functional_step(ops.sgd_step_, fused, [first], [steps])
    assert steps == 1
    torch.testing.assert_close(first, torch.full((3,), 2.0))  # as in torch, the first buffer is the gradient
    torch.testing.assert_close(theta, torch.full((3,), 0.8))
    functional_step(ops.sgd_step_, fused, [first], [steps])
    assert steps == 2
    torch.testing.assert_close(first, torch.full((3,), 0.9 * 2 + 0.5 * 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.backward()


@pytest.mark.parametrize("fused", PATHS)
def test_functional_adamw_has_moments_and_counts_its_steps(fused):
    first, second, steps = torch.zeros(3), torch.zeros(3), torch.tensor(0.0)
    theta = functional_step(ops.adamw_step_, fused, [first], [second], [steps])
    assert steps == 1
    torch.testing.assert_close(first, torch.full((3,), 0.2))
    torch.testing.assert_close(second, torch.full((3,), 2.0))
    torch.testing.assert_close(theta, torch.full((3,), 0.9))


@pytest.mark.parametrize("fused", PATHS)
def test_a_functional_step_of_no_tensors(fused):
    hyper = torch.zeros(1, 8, dtype=torch.float64)
    report = report_of(0)
    ops.sgd_step_([], [], [], [], [], [], [], hyper, control_of(), report, fused=fused)
    assert report[0, StepReport.SKIPPED] == 0


def test_there_is_no_derivative_and_backward_raises():
    d, g1 = torch.randn(5, requires_grad=True), torch.randn(5)

    def both() -> torch.Tensor:
        doubled = d * 2
        lam, _ = ops.halfspace_project_([doubled], [g1], torch.tensor(100.0))
        return ops.halfspace_stats([doubled], [g1])[1] + lam

    value = both()
    dot, square = torch.dot(2 * d, g1).item(), torch.dot(g1, g1).item()
    assert value.item() == pytest.approx(100 + (100 - dot) / square, rel=1e-4)
    with pytest.raises(RuntimeError, match="has no derivative; detach what it is given"):
        value.backward()
    with torch.no_grad():
        assert not both().requires_grad
