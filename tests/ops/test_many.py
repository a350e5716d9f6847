"""Steps with several constraints: the QP by an independent solver, kernels against the reference, and the same bits."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from steps import (
    COUNT,
    DECAY,
    FRESH,
    HYPER,
    PATHS,
    assert_kernels_close,
    cloned,
    control_of,
    control_row,
    needs_kernels,
    operands_like,
    report_of,
    run_step,
    written,
)

from unlearn_ext import ops
from unlearn_ext.ops import TwoPhase, extension, layout
from unlearn_ext.ops.layout import Hyper, Operands, Report, Rule, StepReport, Sums, slots_for

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
NAN, INF = float("nan"), float("inf")
RULES = list(Rule)
each_rule = pytest.mark.parametrize("rule", RULES)
each_path = pytest.mark.parametrize("fused", PATHS)
every_count = pytest.mark.parametrize("count", range(1, 9))  # those of the kernels
SIZES = [(3,), (17,), (0,), (1023,), (129, 65)]


def psis(count):
    return [0.5 + 0.25 * i for i in range(count)]


def shortest(normals, demands):
    """Return the shortest x with ⟨n_i, x⟩ ≥ b_i, by NNLS (Lawson and Hanson, chapter 23)."""
    system = np.vstack([np.asarray(normals).T, demands])
    right = np.eye(len(system))[-1]
    residual = system @ nnls(system, right, maxiter=10_000)[0] - right
    return -residual[:-1] / residual[-1]


def formulas(rule, operands):
    """Return diag P, d and every a_i of a step with one tensor, from the formulas of the design, in numpy."""
    h = HYPER[rule]
    theta, g2, first, second = (
        None if column[0] is None else column[0].numpy()
        for column in (operands.params, operands.grads, operands.firsts, operands.seconds)
    )
    a = [grads[0].numpy() for grads in operands.constraint_grads]
    if operands.averages[0][0] is not None:
        a = [(1 - FRESH) * before[0].numpy() + FRESH * g for before, g in zip(operands.averages, a, strict=True)]
    if rule is Rule.PROJECT:
        return np.ones_like(g2), g2, a
    if rule is Rule.SGD:
        d = h[Hyper.BETA1] * first + (1 - h[Hyper.BETA2]) * (g2 + h[Hyper.WEIGHT_DECAY] * theta)
        return np.ones_like(d), d, a
    squares, t = h[Hyper.CONSTRAINT_WEIGHT] * sum(x**2 for x in a), operands.steps[0].item() + 1
    corrected = 1 - h[Hyper.BETA2] ** t
    if rule is Rule.WRAP:
        v = h[Hyper.BETA2] * second + (1 - h[Hyper.BETA2]) * g2**2
        return np.sqrt(v / corrected + squares) + h[Hyper.EPS], (first - theta) / h[Hyper.LR], a
    v = h[Hyper.BETA2] * second + (1 - h[Hyper.BETA2]) * (squares + g2**2)
    m = h[Hyper.BETA1] * first + (1 - h[Hyper.BETA1]) * g2
    p = np.sqrt(v / corrected) + h[Hyper.EPS]
    return p, m / (1 - h[Hyper.BETA1] ** t) / p + h[Hyper.WEIGHT_DECAY] * theta, a


@each_rule
@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("count", range(1, 10))
def test_the_nearest_step_by_an_independent_solver(rule, averages, count):
    operands = operands_like(rule, [torch.empty(40)], (F64,) * 5, seed=count, constraints=count, averages=averages)
    before = cloned(operands)
    p, d, a = formulas(rule, before)
    demands = [x @ d + 4 * ((i + 1) % 3 - 0.7) for i, x in enumerate(a)]  # every third is met already
    step = run_step(rule, operands, demands, fused=False)
    x = shortest([a_i / np.sqrt(p) for a_i in a], [psi - a_i @ d for psi, a_i in zip(demands, a, strict=True)])
    g = d + x / np.sqrt(p)
    if rule is Rule.PROJECT:
        mine = operands.grads[0].numpy()
    else:
        start = before.firsts[0] if rule is Rule.WRAP else before.params[0]
        mine = (start - operands.params[0]).numpy() / HYPER[rule][Hyper.LR]
    np.testing.assert_allclose(mine, g, rtol=1e-7, atol=1e-9)
    assert all(a_i @ mine >= psi - 1e-9 for a_i, psi in zip(a, demands, strict=True))
    assert (step.report[1:, Report.LAMBDA] > 0).any()
    assert (step.report[1:, Report.SHORTFALL].abs() < 1e-9).all()


@needs_kernels
@each_rule
@every_count
@pytest.mark.parametrize("averages", [False, True])
def test_kernels_and_reference(rule, count, averages):
    shaped = [torch.empty(s) for s in SIZES]
    operands = operands_like(rule, shaped, (F32,) * 5, seed=20 + count, constraints=count, averages=averages)
    assert_kernels_close(rule, operands, psis(count))


MIXES = [(BF16,) * 5, (F16,) * 5, (F32, BF16, F16, F32, BF16), (BF16, F32, F32, F32, F32)]


@needs_kernels
@pytest.mark.parametrize(("rule", "mix"), list(itertools.product(RULES, MIXES)))
def test_dtype_mixes(rule, mix):
    for count in (2, 3, 7):
        shaped = [torch.empty(s) for s in SIZES]
        operands = operands_like(rule, shaped, mix, seed=31, constraints=count, averages=True)
        half = BF16 if mix[2] is not BF16 else F16
        operands.constraint_grads[1] = [g.to(half) for g in operands.constraint_grads[1]]  # unlike the other's dtype
        assert_kernels_close(rule, operands, psis(count))


def results_of(rule, operands, psi):
    mine = cloned(operands)
    step = run_step(rule, mine, psi, fused=True)
    return [step.sums, step.report, *written(rule, mine)]


def assert_equal_bits(results):
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernels
@pytest.mark.parametrize(
    ("rule", "count"), [(Rule.ADAMW, k) for k in range(1, 9)] + [(rule, 3) for rule in RULES if rule is not Rule.ADAMW]
)
def test_the_same_bits_from_any_number_of_threads(rule, count):
    shaped = [torch.empty(s) for s in ((80_001,), (7,), (4096 * 9,), (129, 301))]  # enough for two threads
    operands = operands_like(rule, shaped, (F32,) * 5, seed=7, constraints=count, averages=count % 2 == 1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 4):
            torch.set_num_threads(threads)
            results.append(results_of(rule, operands, psis(count)))
    finally:
        torch.set_num_threads(before)
    assert_equal_bits(results)


@needs_kernels
@each_rule
@every_count
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_the_same_bits_from_every_instruction_set(rule, count, dtype):
    shaped = [torch.empty(s) for s in SIZES]
    operands = operands_like(rule, shaped, (dtype,) * 5, seed=11, constraints=count, averages=True)
    best, results = extension.kernels.cpu_isa(), []
    try:
        for isa in extension.kernels.cpu_isas():
            extension.kernels.use_cpu_isa(isa)
            results.append(results_of(rule, operands, psis(count)))
    finally:
        extension.kernels.use_cpu_isa(best)
    assert_equal_bits(results)


@needs_kernels
@each_rule
@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_a_padded_step_is_that_with_constraints_without_gradient(rule, count):
    operands = operands_like(rule, [torch.empty(s) for s in SIZES], (F32,) * 5, seed=12, constraints=count)
    slots, padded = slots_for(count), cloned(operands)
    for _ in range(slots - count):
        padded.constraint_grads.append([None] * len(SIZES))
        padded.averages.append([None] * len(SIZES))
    few = results_of(rule, operands, psis(count))
    many = results_of(rule, padded, psis(count) + [-1.0] * (slots - count))
    assert torch.equal(few[1], many[1][: 1 + count])
    assert_equal_bits([[few[0], *few[2:]], [many[0], *many[2:]]])


@each_path
def test_a_step_without_constraints(fused):
    for rule in (Rule.SGD, Rule.ADAMW, Rule.WRAP):
        none = operands_like(rule, [torch.empty(50)], (F32,) * 5, seed=13, constraints=0)
        one = operands_like(rule, [torch.empty(50)], (F32,) * 5, seed=13, constraints=0)
        one.constraint_grads, one.averages = [[torch.zeros(50)]], [[None]]
        run_step(rule, none, [], fused)
        run_step(rule, one, -1.0, fused)
        assert all(torch.equal(a, b) for a, b in zip(written(rule, none), written(rule, one), strict=True))


@each_path
@each_rule
@pytest.mark.parametrize("where", ["gradient", "average", "value", "psi"])
def test_a_value_of_any_constraint_that_is_not_finite_skips_the_step(rule, fused, where):
    for count, constraint, bad in ((2, 1, NAN), (3, 2, INF), (8, 0, NAN)):
        operands = operands_like(
            rule, [torch.empty(11), torch.empty(600)], (F32,) * 5, seed=5, constraints=count, averages=True
        )
        given = psis(count)
        if where == "gradient":
            operands.constraint_grads[constraint][1][345] = bad
        elif where == "average":
            operands.averages[constraint][1][345] = bad
        elif where == "psi":
            given[constraint] = bad
        before = cloned(operands)
        step = TwoPhase(torch.device("cpu"), constraints=count, fused=fused)
        for column, value in HYPER[rule].items():
            step.hyper[:, column] = value
        step.control.copy_(control_of(*(control_row(psi, decay=DECAY) for psi in given)))
        values = [torch.tensor(bad if where == "value" and i == constraint else 1.0) for i in range(count)]
        kept = step.report[1:, layout.KEPT :].clone()
        step.begin(rule, operands, values)
        step.stats()
        step.apply_()
        assert step.report[0, StepReport.SKIPPED] == step.report[0, StepReport.SKIPPED_STEPS] == 1
        assert torch.equal(step.report[1:, layout.KEPT :], kept)
        if rule is Rule.WRAP:  # the other optimizer has stepped already; that is undone
            before.params = before.firsts
        for mine, was in zip(written(rule, operands), written(rule, before), strict=True):
            assert torch.equal(mine.view(torch.int32), was.view(torch.int32))
        assert all(s is None or s == 3 for s in operands.steps)


@each_path
def test_some_of_the_optimizers_constraints_in_any_rows(fused):
    """Constraints 3 and 1 of four take part; rows 0 and 2 keep what persists and lose the values of an earlier step."""
    operands = operands_like(Rule.SGD, [torch.empty(40)], (F32,) * 5, seed=14, constraints=2, averages=True)
    alone = cloned(operands)
    step = TwoPhase(torch.device("cpu"), constraints=4, fused=fused)
    for column, value in HYPER[Rule.SGD].items():
        step.hyper[:, column] = value
    step.control.copy_(control_of(*(control_row(psi, decay=DECAY) for psi in (9.0, 0.75, 9.0, 0.5))))
    step.report[1:, Report.PSI :] = 0.25
    step.report[[2, 4], Report.COUNT] = COUNT
    step.begin(Rule.SGD, operands, [torch.tensor(1.0), torch.tensor(1.0)], rows=[3, 1])
    step.stats()
    step.apply_()
    small = run_step(Rule.SGD, alone, [0.5, 0.75], fused)
    torch.testing.assert_close(operands.params[0], alone.params[0], rtol=0, atol=0)
    columns = [Report.PSI, Report.LAMBDA, Report.DOT, Report.SQ_CONSTRAINT, Report.COUNT]
    assert torch.equal(step.report[[4, 2]][:, columns], small.report[1:, columns])
    assert not step.report[[1, 3], Report.PSI : layout.KEPT].any()
    assert (step.report[[1, 3], layout.KEPT :] == 0.25).all()


@each_path
@pytest.mark.parametrize("count", [2, 3, 8])
def test_limits(fused, count):
    """Every |λ| is at most λ_max, the step at most ``max_norm``, and the shortfall says by how much ψ is missed."""
    operands = operands_like(Rule.SGD, [torch.empty(60)], (F32,) * 5, seed=15, constraints=count)
    operands.firsts, operands.steps = [None], [None]
    free, before = cloned(operands), operands.params[0].double()
    step = TwoPhase(torch.device("cpu"), constraints=count, fused=fused)
    step.hyper[:, Hyper.LR] = 0.5
    limits = [0.1 * (1 + i % 2) for i in range(count)]
    rows = [control_row(100.0, lambda_max=most) for most in limits]
    for mine, control in ((operands, control_of(*rows, max_norm=0.25)), (free, control_of(*rows))):
        step.control.copy_(control)
        step.begin(Rule.SGD, mine)
        step.stats()
        assert (step.report[1:, Report.LAMBDA] <= torch.tensor(limits, dtype=F64)).all()
        step.apply_()
    assert step.report[1:, Report.LAMBDA].max() == 0.2
    g = (before - operands.params[0].double()) / 0.5
    assert g.norm().item() == pytest.approx(0.25, rel=1e-4)
    free_g = (before - free.params[0].double()) / 0.5
    for row, a in zip(step.report[1:], free.constraint_grads, strict=True):
        short = 100 - (a[0].double() @ free_g).item()
        assert row[Report.SHORTFALL].item() == pytest.approx(short, rel=1e-5)


@each_path
def test_equalities(fused):
    """The demand of an equality is met from both sides, with λ of any sign; the others only from below."""
    d, a = torch.zeros(3), torch.eye(3)
    operands = Operands([None], [d.clone()], [None], [None], [None], [0], [[row] for row in a])
    step = TwoPhase(torch.device("cpu"), constraints=3, fused=fused)
    step.hyper[:, Hyper.LR] = 1.0
    step.control.copy_(control_of(control_row(-2.0, equality=True), control_row(-2.0), control_row(3.0, equality=True)))
    step.begin(Rule.PROJECT, operands)
    step.stats()
    step.apply_()
    assert operands.grads[0].tolist() == [-2.0, 0.0, 3.0]
    assert step.report[1:, Report.LAMBDA].tolist() == [-2.0, 0.0, 3.0]


@each_path
def test_groups_are_weighted_by_their_rates(fused):
    """Σ_k μ_k⟨a_i, g⟩_k ≥ μψ_i with the step of each group in its own metric; λ from the weighted Gram matrix."""
    rates, operands = [0.1, 0.003], operands_like(
        Rule.SGD, [torch.empty(20), torch.empty(30)], (F32,) * 5, seed=16, constraints=3
    )  # fmt: skip
    operands.firsts, operands.steps, operands.groups = [None] * 2, [None] * 2, [0, 1]
    step = TwoPhase(torch.device("cpu"), groups=2, constraints=3, fused=fused)
    step.hyper[:, Hyper.LR] = torch.tensor(rates, dtype=F64)
    step.control.copy_(control_of(*(control_row(psi) for psi in (8.0, 9.0, 10.0))))
    before = [p.double() for p in operands.params]
    step.begin(Rule.SGD, operands)
    step.stats()
    step.apply_()
    for i, psi in enumerate((8.0, 9.0, 10.0)):
        a = [g.double() for g in operands.constraint_grads[i]]
        sq = [(g @ g).item() for g in a]
        mu = sum(m * s for m, s in zip(rates, sq, strict=True)) / sum(sq)
        changes = (g @ (b - p.double()) for g, b, p in zip(a, before, operands.params, strict=True))
        assert sum(changes).item() >= mu * psi * (1 - 1e-5)
        assert step.report[1 + i, Report.PSI].item() == psi


def test_functional_layer():
    generator = torch.Generator().manual_seed(2)
    d = [torch.randn(5, generator=generator), torch.randn(3, 2, generator=generator)]
    a = [[torch.randn(t.shape, generator=generator) for t in d] for _ in range(3)]
    flat_d, *flat = (torch.cat([t.flatten() for t in ts]).double() for ts in (d, *a))
    want = [flat_d @ flat_d, *(x @ flat_d for x in flat), *(flat[i] @ flat[j] for i in range(3) for j in range(i, 3))]
    stats = ops.halfspace_stats(d, [t for ts in a for t in ts])
    torch.testing.assert_close(stats, torch.stack(want), rtol=1e-5, atol=1e-5)
    psi = stats[1:4] + 1
    *lam, skipped = ops.halfspace_project_(d, [t for ts in a for t in ts], psi).tolist()
    assert skipped == 0
    g = torch.cat([t.flatten() for t in d]).double()
    torch.testing.assert_close(g, flat_d + sum(x * y for x, y in zip(lam, flat, strict=True)), rtol=1e-5, atol=1e-5)
    assert all(x @ g >= p - 1e-5 for x, p in zip(flat, psi, strict=True))


@pytest.mark.parametrize("psi", [torch.tensor(1.0), torch.ones(3), torch.ones(2, 1)])
def test_as_many_psi_as_constraints(psi):
    with pytest.raises(ValueError, match=r"must be a real tensor of shape \(2,\)"):
        ops.halfspace_project_([torch.ones(3)], [torch.ones(3), torch.ones(3)], psi)


@needs_kernels
def test_nine_constraints_have_no_kernels():
    operands = operands_like(Rule.SGD, [torch.empty(40)], (F32,) * 5, seed=17, constraints=9)
    unchanged, other = cloned(operands), cloned(operands)
    with pytest.raises(RuntimeError, match=r"fused=True, but the kernels have 8 constraints at most, and .* has 9\."):
        run_step(Rule.SGD, operands, psis(9), fused=True)
    assert torch.equal(operands.params[0], unchanged.params[0])
    results = [run_step(Rule.SGD, mine, psis(9), fused) for mine, fused in ((operands, None), (other, False))]
    assert torch.equal(operands.params[0], other.params[0])
    assert torch.equal(results[0].report, results[1].report)


def test_columns_of_the_sums():
    for slots in (1, 2, 4, 8):
        columns = Sums(slots)
        pairs = [columns.gram(i, j) for i in range(slots) for j in range(i, slots)]
        singles = [of(i) for of in (columns.dot, columns.power, columns.aligned) for i in range(slots)]
        assert sorted([0, 1, *singles, *pairs]) == list(range(columns.count))
        assert columns.gram(slots - 1, 0) == columns.gram(0, slots - 1)


@each_path
def test_functional_steps_of_several_constraints(fused):
    """The operators take K lists one after the other, and the averages in the same way."""
    results = []
    for functional in (True, False):
        operands = operands_like(Rule.ADAMW, [torch.empty(40), torch.empty(5)], (F32,) * 5, 18, 3, averages=True)
        if not functional:
            step = run_step(Rule.ADAMW, operands, psis(3), fused)
            results.append([step.report, *written(Rule.ADAMW, operands)])
            continue
        hyper = torch.tensor([[HYPER[Rule.ADAMW].get(column, 0.0) for column in Hyper]], dtype=F64)
        control, report = control_of(*(control_row(psi, decay=DECAY) for psi in psis(3))), report_of(3)
        report[1:, Report.CONSTRAINT], report[1:, Report.COUNT] = 1.0, COUNT
        lists = [[t for ts in columns for t in ts] for columns in (operands.constraint_grads, operands.averages)]
        ops.adamw_step_(
            operands.params, operands.grads, lists[0], operands.firsts, operands.seconds, operands.steps, lists[1],
            [0, 0], hyper, control, report, fused,
        )  # fmt: skip
        results.append([report, *written(Rule.ADAMW, operands)])
    assert_equal_bits(results)
