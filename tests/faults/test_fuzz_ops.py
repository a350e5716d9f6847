"""Random operands of any kind: either an exception and nothing written, or the result of the float64 reference.

``UNLEARN_EXT_FUZZ`` is the number of examples of each test; ``make fuzz`` sets a large one.
"""

import itertools
import os
import warnings
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import GOOD, KINDS
from steps import cloned, control_of, control_row, report_of
from torch import Tensor, nn

import unlearn_ext as ux
from unlearn_ext import ops
from unlearn_ext.ops import TwoPhase
from unlearn_ext.ops.layout import Control, Hyper, Operands, Report, Rule, StepReport, written

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
#: Numbers of constraints; many are rare, since their operands take long to draw.
COUNTS = st.sampled_from([1] * 9 + [0, 2, 2, 2, 3, 3, 8, 9])


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


def split(things: list, size: int) -> list[list]:
    """Split as the operators do: with a tensor left out, a list may still fit, as one for another number."""
    return [things[begin : begin + size] for begin in range(0, len(things), size)]


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


def assert_stepped(rule: Rule, after: Operands, mine: dict, before: Operands) -> None:
    """Check λ of ``mine``, and that the tensors are what the float64 reference writes with it."""
    phases = TwoPhase(torch.device("cpu"), len(mine["hyper"]), len(mine["control"]) - 1, fused=False)
    phases.hyper, phases.control = mine["hyper"], mine["control"]
    reached = []
    lambdas = mine["report"][1:, Report.LAMBDA]
    # λ = 0 too, and each λ_i alone, with and without what is remembered of earlier steps, for the sizes of the
    # parts of the step: large ones may cancel.
    alone = [torch.zeros_like(lambdas), *torch.diag(lambdas)]
    fresh = forgetful(before)
    for start, lam in [(before, lambdas), *((before, lam) for lam in alone), *((fresh, lam) for lam in alone)]:
        phases.report = mine["asked"].clone()
        operands = cloned(start)
        phases.begin(rule, operands)
        phases.stats()
        if not reached:
            solved = phases.report.clone()
        phases.report[1:, Report.LAMBDA] = lam
        phases.report[0, StepReport.SCALE] = mine["report"][0, StepReport.SCALE]
        phases.apply_()
        reached.append(operands.lists())
    assert mine["report"][0, StepReport.SKIPPED] == solved[0, StepReport.SKIPPED]
    if solved[0, StepReport.SKIPPED]:
        return
    assert_solved(mine["report"], solved)
    for column in written(rule, before.constraints):
        rows = zip(after.lists()[column], before.lists()[column], *(lists[column] for lists in reached), strict=True)
        for got, was, want, plain, *single in rows:
            if got is not None and not got.is_floating_point():
                assert got == want  # a step counter, which the reference accepts in any dtype
            elif got is not None and got.numel():
                moves = sum((one - plain).abs() for one in single)
                parts = (was.abs() + plain.abs() + moves).nan_to_num(0, posinf=0)
                rounding = torch.finfo(got.dtype).eps * want.abs().nan_to_num(0) + torch.finfo(got.dtype).tiny
                wanted, got = want.to(got.dtype).double(), got.detach().double()
                error = torch.where((got == wanted) | (got.isnan() & want.isnan()), 0.0, (got - wanted).abs())
                assert (error <= rounding + 5e-6 * (parts + parts.max() ** 2 * (column in (2, 3)))).all()


def forgetful(operands: Operands) -> Operands:
    """Return a copy whose ``firsts`` (momentum, or θ before the step) and averages are zero."""
    copy = cloned(operands)
    for thing in chain(copy.firsts, *copy.averages):
        if thing is not None:
            thing.zero_()
    return copy


def assert_solved(report: Tensor, solved: Tensor) -> None:
    """Check the sums to float32's rounding of their terms, which the norms bound, and λ to the rounding of the sums.

    The λ of several constraints may depend on that rounding without limit, where the constraints contradict each other.
    """
    sq_direction = solved[0, StepReport.SQ_DIRECTION]
    torch.testing.assert_close(report[0, StepReport.SQ_DIRECTION], sq_direction, rtol=1e-5, atol=1e-30)
    for got, want in zip(report[1:], solved[1:], strict=True):
        sq_constraint = want[Report.SQ_CONSTRAINT]
        terms = (sq_constraint * sq_direction).sqrt()
        assert (got[Report.DOT] - want[Report.DOT]).abs() <= 1e-5 * terms + 1e-30
        torch.testing.assert_close(got[Report.SQ_CONSTRAINT], sq_constraint, rtol=1e-5, atol=1e-30)
        torch.testing.assert_close(got[Report.FRESH], want[Report.FRESH])
        assert got[Report.LAMBDA].isfinite()
        if sq_constraint > 1e-30 and len(report) == 2:
            share = 1e-4 * (terms + want[Report.PSI].abs() + want[Report.LAMBDA].abs() * sq_constraint) / sq_constraint
            assert (got[Report.LAMBDA] - want[Report.LAMBDA]).abs() <= share


@fuzz
@given(st.data(), st.floats(-10, 10), kinds, seeds)
def test_projection(data, psi, kind, seed):
    count = data.draw(COUNTS) or 1
    lists = data.draw(columns(1 + count))
    directions, *by_constraint = lists
    constraint_grads = flat(by_constraint)
    things = [*directions, *constraint_grads]
    shape = () if count == 1 and seed % 2 else (count,)
    psi = made(kind, shape, seed) if seed % 10 == 0 else torch.full(shape, psi)
    before = [[exact(thing) for thing in column] for column in lists]
    result = []
    call = lambda: result.append(torch.ops.unlearn_ext.halfspace_project_(directions, constraint_grads, psi))  # noqa: E731
    if not attempt(call, things) or not all(map(readable, things)):
        return
    *lam, skipped = result[0].detach()
    none = [None] * len(directions)
    hyper = torch.zeros(1, len(Hyper), dtype=torch.float64)
    hyper[0, Hyper.LR] = 1.0
    control, report, asked = control_of(*[control_row()] * count), report_of(count), report_of(count)
    control[1:, Control.GIVEN_PSI] = psi.detach().double()
    phases = TwoPhase(torch.device("cpu"), constraints=count, fused=False)
    phases.hyper, phases.control, phases.report = hyper, control, report
    operands = [
        Operands(none, d, none, none, none, [0] * len(none), grads)
        for d, *grads in (lists, before, [list(column) for column in before])
    ]
    phases.begin(Rule.PROJECT, operands[2])
    phases.stats()  # the operator returns only λ and the flag
    mine = {"hyper": hyper, "control": control, "asked": asked, "report": report.clone()}
    assert skipped == report[0, StepReport.SKIPPED]
    if not skipped:
        mine["report"][1:, Report.LAMBDA] = torch.stack(lam)
    assert_stepped(Rule.PROJECT, operands[0], mine, operands[1])


@fuzz
@given(st.data())
def test_stats(data):
    count = data.draw(COUNTS) or 1
    lists, result = data.draw(columns(1 + count)), []
    directions, *by_constraint = lists
    call = lambda: result.append(torch.ops.unlearn_ext.halfspace_stats(directions, flat(by_constraint)))  # noqa: E731
    if attempt(call, flat(lists)) and all(map(readable, flat(lists))):
        by_constraint = split(flat(by_constraint), len(directions))
        d, *a = (torch.cat([exact(thing).flatten() for thing in column]) for column in (directions, *by_constraint))
        pairs = [(d, d), *((x, d) for x in a), *itertools.combinations_with_replacement(a, 2)]
        want = torch.stack([x @ y for x, y in pairs])
        sizes = torch.stack([x.abs() @ y.abs() for x, y in pairs])
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


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAMW, Rule.WRAP])
@fuzz
@given(data=st.data())
def test_steps(rule, data):
    draw = data.draw
    count = draw(COUNTS)
    states = draw(st.booleans()) or rule is not Rule.SGD
    averaged = count > 0 and draw(st.booleans())
    names = ["params", "grads"] + (["firsts"] if states else []) + (["seconds"] if rule is not Rule.SGD else [])
    lists = draw(columns(len(names) + count * (1 + averaged)))
    named = dict(zip(names, lists, strict=False))
    if rule is not Rule.SGD:
        named["seconds"][:] = [
            thing.detach().abs() if readable(thing) and thing.is_floating_point() else thing
            for thing in named["seconds"]
        ]
    by_constraint, averages = lists[len(names) : len(names) + count], lists[len(names) + count :]
    n = len(lists[0])
    if not n:
        by_constraint = averages = []  # the operators cannot tell how many constraints no tensors have
    n_groups = draw(st.integers(1, 2))
    steps = [torch.tensor(float(draw(st.integers(1, 5)))) for _ in range(n if states else 0)]
    if n > 1 and states and draw(st.integers(0, 9)) == 0:
        steps[0] = draw(
            st.sampled_from([steps[1], torch.ones(2), torch.tensor(1), torch.ones((), device="meta"), None])
        )
    sorted_groups = sorted(draw(st.integers(0, n_groups - 1)) for _ in range(n))
    groups = draw(st.sampled_from([sorted_groups] * 9 + [[7] * n, [-1] * n, sorted_groups[::-1], sorted_groups[1:]]))
    numbers = {Hyper.LR: 0.1, Hyper.BETA1: 0.9, Hyper.BETA2: 0.1 if rule is Rule.SGD else 0.99, Hyper.EPS: 1e-8}
    numbers[Hyper.WEIGHT_DECAY] = draw(st.sampled_from([0.0, 0.1]))
    numbers[Hyper.CONSTRAINT_WEIGHT] = draw(st.sampled_from([0.0, 0.01, 1.0]))
    hyper = torch.tensor([[numbers.get(column, 0.0) for column in Hyper]] * n_groups, dtype=torch.float64)
    control, report = control_of(max_norm=draw(st.sampled_from([None, 1.0]))), report_of(count)
    laws = [ops.GIVEN_PSI, ux.EpsilonGap(0.3).coefficients(), ux.GradientNorm().coefficients()]
    decay = draw(st.sampled_from([0.0, 0.5, torch.nan])) if averaged else 0.0
    for row in report[1:]:
        law = [*draw(st.sampled_from(laws)), 0.5, float(draw(st.integers(0, 5)) == 0), torch.inf, decay]
        control = torch.cat([control, torch.tensor([law], dtype=torch.float64)])
        row[Report.CONSTRAINT] = draw(st.sampled_from([1.0, 0.3, 0.0, torch.nan, torch.inf]))
        row[Report.COUNT], row[Report.SIGNAL] = draw(st.sampled_from([0.0, 1.0, 5.0])), 0.5
        row[Report.MODEL], row[Report.REACH] = 0.7, 0.1  # what the steps before may have left
    blocks = {"hyper": hyper, "control": control, "report": report}
    if draw(st.integers(0, 9)) == 0:
        spoilt = draw(st.sampled_from(sorted(blocks)))
        blocks[spoilt] = BLOCKS[draw(st.sampled_from(sorted(BLOCKS)))](blocks[spoilt])
    fused = draw(st.sampled_from([None, None, True, False]))
    before = {id(thing): exact(thing) for thing in flat(lists)}
    steps_before, asked = [exact(step) for step in steps], report.clone()

    shared = (steps, flat(averages), groups, *blocks.values(), fused)
    params, grads, firsts, seconds = (named.get(name, []) for name in ("params", "grads", "firsts", "seconds"))
    op, arguments = {
        Rule.SGD: (torch.ops.unlearn_ext.sgd_step_, (params, grads, flat(by_constraint), firsts)),
        Rule.ADAMW: (torch.ops.unlearn_ext.adamw_step_, (params, grads, flat(by_constraint), firsts, seconds)),
        Rule.WRAP: (torch.ops.unlearn_ext.wrap_step_, (params, firsts, grads, flat(by_constraint), seconds)),
    }[rule]
    things = [*flat(lists), *steps]
    if not attempt(lambda: op(*arguments, *shared), things):
        return
    if not all(readable(thing) for thing in things if thing is not None):
        return
    mine = {"hyper": hyper, "control": control, "asked": asked, "report": blocks["report"]}
    operands = []
    by_constraint, averages = (split(flat(columns), n) if n else [] for columns in (by_constraint, averages))
    exacts = lambda column: [before[id(thing)] for thing in column]  # noqa: E731
    for of, counters in ((list, steps), (exacts, steps_before)):
        state = [of(named[name]) if name in named else [None] * n for name in ("params", "grads", "firsts", "seconds")]
        operands.append(
            Operands(*state, counters or [None] * n, groups, list(map(of, by_constraint)), list(map(of, averages)))
        )
    assert_stepped(rule, operands[0], mine, operands[1])


NAMES = {"sgd": [None], "adamw": [None], "three": ["a", "b", "c"]}
OPTIMIZERS = {
    "sgd": lambda params, **options: ux.EpsilonSGD(params, lr=0.1, momentum=0.9, **options),
    "adamw": lambda params, **options: ux.EpsilonAdamW(params, lr=0.1, **options),
    "three": lambda params, control, **options: ux.EpsilonSGD(
        params, lr=0.1, control=dict.fromkeys(NAMES["three"], control), constraint_grad_ema=0.5, **options
    ),
}


def parameter(thing: object) -> object:
    if not isinstance(thing, Tensor) or thing.requires_grad:
        return thing
    differentiable = (thing.is_floating_point() or thing.is_complex()) and not thing.is_inference()
    return nn.Parameter(thing, requires_grad=differentiable)


def take_step(name: str, optimizer: torch.optim.Optimizer, params: list, grads: list, held: list, c: object) -> None:
    """Take one step with given gradients."""
    for constraint, column in zip(NAMES[name], held, strict=True):
        for param, grad in zip(params, column, strict=True):
            param.grad = grad
        optimizer.hold_constraint(c, constraint)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@fuzz
@given(data=st.data())
def test_optimizers(name, data):
    """The step equals that of the same optimizer on the float64 reference; the tests above check sums and λ."""
    lists = data.draw(columns(2 + len(NAMES[name]), alike=True))
    c = made(data.draw(kinds), (), data.draw(seeds)) if data.draw(st.booleans()) else torch.tensor(1.0)
    control = data.draw(st.sampled_from([ux.EpsilonGap(0.3)] * 9 + [None, 3, "gap", lambda stats: stats.dot]))
    params = [parameter(thing) for thing in lists[0]]
    lists = [params, *([t.detach() if isinstance(t, Tensor) else t for t in column] for column in lists[1:])]
    before = [[exact(thing) for thing in column] for column in lists]

    def call() -> None:
        optimizer = OPTIMIZERS[name](params, control=control)
        take_step(name, optimizer, *lists[:2], lists[2:], c)

    things = flat(lists)
    if not attempt(call, things) or not all(map(readable, [*filter(lambda t: t is not None, things), c])):
        return
    doubles, grads = [nn.Parameter(param.clone()) for param in before[0]], [list(map(exact, g)) for g in before[1:]]
    optimizer = OPTIMIZERS[name](doubles, control=control, fused=False)
    take_step(name, optimizer, doubles, grads[0], grads[1:], exact(c))
    contradict = doubles and name == "three" and any(s.shortfall > 1e-4 * s.psi for s in optimizer.stats.values())
    for got, want, start in zip(params, doubles, before[0], strict=True):
        if contradict:  # the rounding of the sums is amplified up to a thousandfold: λ of the slacks are large
            assert (got.isfinite() | ~want.isfinite()).all()
        elif got.numel() and want.isfinite().all():
            moved = (want.detach() - start).abs().max()
            tolerance = 2 * torch.finfo(got.dtype).eps * (start.abs().max() + moved) + 1e-3 * moved + 1e-30
            assert ((got.detach().double() - want.detach()).abs() <= tolerance).all()
