"""Random operands of any kind: either an exception and nothing written, or the result of the float64 reference.

``UNLEARN_EXT_FUZZ`` is the number of examples of each test; ``make fuzz`` sets a large one.
"""

import os
import warnings
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import GOOD, KINDS
from torch import Tensor, nn

import unlearn_ext as ux
from unlearn_ext import ops
from unlearn_ext.ops import TwoPhase
from unlearn_ext.ops.layout import WRITES, Control, Hyper, Operands, Report, Rule

REFUSALS = (ValueError, TypeError, RuntimeError)  # torch's NotImplementedError is a RuntimeError
USUAL = ["float32", "bfloat16", "float16", "gaps"]
SHAPES = [(), (1,), (7,), (0,), (3, 5), (2, 0), (2, 3, 4), (5001,)]

fuzz = settings(
    max_examples=int(os.environ.get("UNLEARN_EXT_FUZZ", "150")),
    deadline=None,
    derandomize="UNLEARN_EXT_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
kinds = st.one_of(st.sampled_from(sorted(GOOD)), st.sampled_from(sorted(GOOD)), st.sampled_from(sorted(KINDS)))
seeds = st.integers(0, 999)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch, about quantisation, sparse rows and fake tensors
        yield


@st.composite
def columns(draw, count: int, alike: bool = False) -> list[list]:
    """Draw lists of operands, mostly of one shape per row; sometimes an operand appears twice or a list is too short.

    Args:
        alike: use one dtype per row, as torch requires of a parameter and its gradients.
    """
    lists: list[list] = [[] for _ in range(count)]
    for _ in range(draw(st.integers(0, 4))):
        shape = draw(st.sampled_from(SHAPES))
        odd = draw(st.integers(0, count))  # at most one odd operand per row, or every step would be refused
        usual = draw(st.sampled_from(USUAL))
        for column, things in enumerate(lists):
            kind = draw(kinds) if column == odd else usual if alike else draw(st.sampled_from(USUAL))
            things.append(made(kind, shape, draw(seeds)))
    if lists[0] and draw(st.integers(0, 4)) == 0:
        source, target = draw(st.sampled_from(lists)), draw(st.sampled_from(lists))
        target[draw(st.integers(0, len(target) - 1))] = source[draw(st.integers(0, len(source) - 1))]
    if lists[0] and draw(st.integers(0, 19)) == 0:
        draw(st.sampled_from(lists)).pop()
    return lists


def made(kind: str, shape: tuple[int, ...], seed: int) -> object:
    try:
        return KINDS[kind](shape, seed)
    except REFUSALS:  # torch cannot make this kind in this shape
        return KINDS["float32"](shape, seed)


def readable(thing: object) -> bool:
    plain = type(thing) in (Tensor, nn.Parameter) and thing.layout is torch.strided
    return plain and not thing.is_meta and not thing.is_quantized


def flat(lists: list[list]) -> list:
    return list(chain.from_iterable(lists))


def snapshot(thing: object) -> Tensor | None:
    return thing.detach().clone() if readable(thing) else None


def attempt(call: Callable[[], object], things: list) -> bool:
    """Return whether the call succeeded; if it was refused, check the message and that nothing was written."""
    before = [snapshot(thing) for thing in things]
    try:
        call()
    except (*REFUSALS, AssertionError) as error:
        assert_refused(error, things, before)
        return False
    return True


def assert_refused(error: Exception, things: list, before: list[Tensor | None]) -> None:
    assert len(str(error)) > 10
    assert isinstance(error, REFUSALS) or "FakeTensor" in str(error)  # torch's assertion on mixed real and fake
    for thing, was in zip(things, before, strict=True):
        if was is not None:
            torch.testing.assert_close(thing.detach(), was, rtol=0, atol=0, equal_nan=True)


def exact(thing: object) -> Tensor | None:
    return thing.detach().double().resolve_neg().clone() if readable(thing) else None


def assert_stepped(rule: Rule, lists: list[list], mine: dict, before: list[list], groups: list[int]) -> None:
    """Check λ of ``mine``, and that the tensors are what the float64 reference writes with it."""
    phases = TwoPhase(torch.device("cpu"), len(mine["hyper"]), fused=False)
    phases.hyper, phases.control = mine["hyper"], mine["control"]
    reached = []
    for lam in (0.0, mine["report"][Report.LAMBDA]):  # λ = 0 too, for the size of the two parts of the step
        phases.report = mine["asked"].clone()
        operands = Operands(*([None if t is None else t.clone() for t in column] for column in before), groups)
        phases.begin(rule, operands)
        phases.stats()
        solved = phases.report.clone()
        phases.report[Report.LAMBDA] = lam
        phases.report[Report.SCALE] = mine["report"][Report.SCALE]
        phases.apply_()
        reached.append(operands.lists())
    assert mine["report"][Report.SKIPPED] == solved[Report.SKIPPED]
    if solved[Report.SKIPPED]:
        return
    assert_solved(mine["report"], solved)
    for column in WRITES[rule]:
        rows = zip(lists[column], before[column], reached[0][column], reached[1][column], strict=True)
        for got, was, plain, want in rows:
            if got is not None and not got.is_floating_point():
                assert got == want  # a step counter, which the reference accepts in any dtype
            elif got is not None and got.numel():
                parts = (was.abs() + plain.abs() + (want - plain).abs()).nan_to_num(0, posinf=0)
                rounding = torch.finfo(got.dtype).eps * want.abs().nan_to_num(0) + torch.finfo(got.dtype).tiny
                wanted, got = want.to(got.dtype).double(), got.detach().double()
                error = torch.where((got == wanted) | (got.isnan() & want.isnan()), 0.0, (got - wanted).abs())
                assert (error <= rounding + 5e-6 * (parts + parts.max() ** 2 * (column > 2))).all()


def assert_solved(report: Tensor, solved: Tensor) -> None:
    """Check the sums to float32's rounding of their terms, which the norms bound, and λ to the rounding of the sums."""
    sq_constraint, sq_direction = solved[Report.SQ_CONSTRAINT], solved[Report.SQ_DIRECTION]
    terms = (sq_constraint * sq_direction).sqrt()
    assert (report[Report.DOT] - solved[Report.DOT]).abs() <= 1e-5 * terms + 1e-30
    torch.testing.assert_close(report[Report.SQ_CONSTRAINT], sq_constraint, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(report[Report.SQ_DIRECTION], sq_direction, rtol=1e-5, atol=1e-30)
    if sq_constraint > 1e-30:
        share = 1e-4 * (terms + solved[Report.PSI].abs() + solved[Report.LAMBDA] * sq_constraint) / sq_constraint
        assert (report[Report.LAMBDA] - solved[Report.LAMBDA]).abs() <= share


@fuzz
@given(columns(2), st.floats(-10, 10), kinds, seeds)
def test_projection(lists, psi, kind, seed):
    directions, constraint_grads = lists
    things = [*directions, *constraint_grads]
    psi = made(kind, (), seed) if seed % 10 == 0 else torch.tensor(psi)
    before = [[exact(thing) for thing in column] for column in lists]
    result = []
    call = lambda: result.append(torch.ops.unlearn_ext.halfspace_project_(directions, constraint_grads, psi))  # noqa: E731
    if not attempt(call, things) or not all(map(readable, things)):
        return
    lam, skipped = result[0].detach()
    report, asked = torch.zeros(2, len(Report), dtype=torch.float64)
    none = [None] * len(directions)
    hyper = torch.zeros(1, len(Hyper), dtype=torch.float64)
    hyper[0, Hyper.LR] = 1.0
    control = torch.tensor(ops.control_block(ops.GIVEN_PSI), dtype=torch.float64)
    control[Control.GIVEN_PSI] = psi.detach().double()
    phases = TwoPhase(torch.device("cpu"), fused=False)
    phases.hyper, phases.control, phases.report = hyper, control, report
    phases.begin(Rule.PROJECT, Operands(none, *before, none, none, none, [0] * len(none)))
    phases.stats()  # the operator returns only λ and the flag
    mine = {"hyper": hyper, "control": control, "asked": asked, "report": report.clone()}
    assert skipped == report[Report.SKIPPED]
    if not skipped:
        mine["report"][Report.LAMBDA] = lam
    assert_stepped(
        Rule.PROJECT, [none, *lists, none, none, none], mine, [none, *before, none, none, none], [0] * len(none)
    )


@fuzz
@given(columns(2))
def test_stats(lists):
    result = []
    call = lambda: result.append(torch.ops.unlearn_ext.halfspace_stats(*lists))  # noqa: E731
    if attempt(call, flat(lists)) and all(map(readable, flat(lists))):
        d, c = (torch.cat([exact(thing).flatten() for thing in column]) for column in lists)
        want = torch.stack([c @ d, c @ c, d @ d])
        sizes = torch.stack([c.abs() @ d.abs(), c @ c, d @ d])
        near = (result[0].detach() - want).abs() <= 1e-5 * sizes + 1e-30
        assert (near | ~want.isfinite()).all()


BLOCKS = {
    "good": lambda block: block,
    "float32": lambda block: block.float(),
    "short": lambda block: block[..., :-1].contiguous(),
    "gaps": lambda block: torch.stack([block, block], -1)[..., 0],
    "meta": lambda block: block.to("meta"),
    "flat": lambda block: block.flatten()[:1],
    "nothing": lambda block: None,
}


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAMW])
@fuzz
@given(data=st.data())
def test_steps(rule, data):
    draw = data.draw
    states = draw(st.booleans()) or rule is Rule.ADAMW
    lists = draw(columns({Rule.SGD: 4 if states else 3, Rule.ADAMW: 5}[rule]))
    if rule is Rule.ADAMW:
        lists[4] = [
            thing.detach().abs() if readable(thing) and thing.is_floating_point() else thing for thing in lists[4]
        ]
    n = len(lists[0])
    n_groups = draw(st.integers(1, 2))
    steps = [torch.tensor(float(draw(st.integers(1, 5)))) for _ in range(n if states else 0)]
    if n > 1 and states and draw(st.integers(0, 9)) == 0:
        steps[0] = draw(
            st.sampled_from([steps[1], torch.ones(2), torch.tensor(1), torch.ones((), device="meta"), None])
        )
    sorted_groups = sorted(draw(st.integers(0, n_groups - 1)) for _ in range(n))
    groups = draw(st.sampled_from([sorted_groups] * 9 + [[7] * n, [-1] * n, sorted_groups[::-1], sorted_groups[1:]]))
    numbers = {Hyper.LR: 0.1, Hyper.BETA1: 0.9, Hyper.BETA2: 0.99 if rule is Rule.ADAMW else 0.1, Hyper.EPS: 1e-8}
    numbers[Hyper.WEIGHT_DECAY] = draw(st.sampled_from([0.0, 0.1]))
    numbers[Hyper.CONSTRAINT_WEIGHT] = draw(st.sampled_from([0.0, 0.01, 1.0]))
    hyper = torch.tensor([[numbers.get(column, 0.0) for column in Hyper]] * n_groups, dtype=torch.float64)
    coefficients = draw(
        st.sampled_from([ops.UNCONSTRAINED, ux.EpsilonGap(0.3).coefficients(), ux.GradientNorm().coefficients()])
    )
    control = torch.tensor(ops.control_block(coefficients, draw(st.sampled_from([None, 1.0]))), dtype=torch.float64)
    report = torch.zeros(len(Report), dtype=torch.float64)
    report[Report.CONSTRAINT] = draw(st.sampled_from([1.0, 0.3, 0.0, torch.nan, torch.inf]))
    blocks = {"hyper": hyper, "control": control, "report": report}
    if draw(st.integers(0, 9)) == 0:
        spoilt = draw(st.sampled_from(sorted(blocks)))
        blocks[spoilt] = BLOCKS[draw(st.sampled_from(sorted(BLOCKS)))](blocks[spoilt])
    fused = draw(st.sampled_from([None, None, True, False]))
    before = [[exact(thing) for thing in column] for column in lists]
    steps_before, asked = [exact(step) for step in steps], report.clone()

    params, grads, constraint_grads, *moments = lists
    if rule is Rule.SGD:
        moments = moments or [[]]
    op = {Rule.SGD: torch.ops.unlearn_ext.sgd_step_, Rule.ADAMW: torch.ops.unlearn_ext.adamw_step_}[rule]
    call = lambda: op(params, grads, constraint_grads, *moments, steps, groups, *blocks.values(), fused)  # noqa: E731
    things = [*flat(lists), *steps]
    if not attempt(call, things) or not all(readable(thing) for thing in things if thing is not None):
        return
    none = [None] * n
    padded = lambda *columns: [*columns, *[none] * (5 - len(columns))]  # noqa: E731
    mine = {"hyper": hyper, "control": control, "asked": asked, "report": blocks["report"]}
    after = [*padded(*lists), steps or none]
    assert_stepped(rule, after, mine, [*padded(*before), steps_before or none], groups)


OPTIMIZERS = {
    "sgd": lambda params, **options: ux.EpsilonSGD(params, lr=0.1, momentum=0.9, **options),
    "adamw": lambda params, **options: ux.EpsilonAdamW(params, lr=0.1, **options),
    "projection": lambda params, **options: ux.EpsilonProjection(params, lr=0.1, **options),
}


def parameter(thing: object) -> object:
    if not isinstance(thing, Tensor) or thing.requires_grad:
        return thing
    differentiable = (thing.is_floating_point() or thing.is_complex()) and not thing.is_inference()
    return nn.Parameter(thing, requires_grad=differentiable)


def take_step(optimizer: object, params: list, grads: list, constraint_grads: list, f1: object) -> list[Tensor]:
    """Take one step with given gradients; return the tensors that it wrote."""
    for param, grad in zip(params, constraint_grads, strict=True):
        param.grad = grad
    optimizer.hold_constraint(f1)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    if isinstance(optimizer, ux.EpsilonProjection):
        optimizer.project_()
        return [param.grad for param in params]
    optimizer.step()
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
@fuzz
@given(data=st.data())
def test_optimizers(name, data):
    """The step equals that of the same optimizer on the float64 reference; the tests above check sums and λ."""
    lists = data.draw(columns(3, alike=True))
    f1 = made(data.draw(kinds), (), data.draw(seeds)) if data.draw(st.booleans()) else torch.tensor(1.0)
    control = data.draw(st.sampled_from([ux.EpsilonGap(0.3)] * 9 + [None, 3, "gap", lambda stats: stats.dot]))
    params = [parameter(thing) for thing in lists[0]]
    lists = [params, *([t.detach() if isinstance(t, Tensor) else t for t in column] for column in lists[1:])]
    before = [[exact(thing) for thing in column] for column in lists]
    written: list[Tensor] = []

    def call() -> None:
        optimizer = OPTIMIZERS[name](params, control=control)
        written.extend(take_step(optimizer, *lists, f1))

    things = flat(lists)
    if not attempt(call, things) or not all(map(readable, [*filter(lambda t: t is not None, things), f1])):
        return
    doubles, grads = [nn.Parameter(param.clone()) for param in before[0]], [list(map(exact, g)) for g in before[1:]]
    expected = take_step(OPTIMIZERS[name](doubles, control=control, fused=False), doubles, *grads, exact(f1))
    starts = before[1] if name == "projection" else before[0]
    for got, want, start in zip(written, expected, starts, strict=True):
        if got is not None and got.numel() and want.isfinite().all():
            start = torch.zeros_like(want) if start is None else start
            moved = (want.detach() - start).abs().max()
            tolerance = 2 * torch.finfo(got.dtype).eps * (start.abs().max() + moved) + 1e-3 * moved + 1e-30
            assert ((got.detach().double() - want.detach()).abs() <= tolerance).all()
