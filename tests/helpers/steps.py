"""Random steps of every rule, as plain tensors, for the kernels and the reference."""

from collections.abc import Sequence

import pytest
import torch
from emulated import needs_compiler
from torch import Tensor

from unlearn_ext import ops
from unlearn_ext.ops import TwoPhase
from unlearn_ext.ops.extension import why_not
from unlearn_ext.ops.layout import Hyper, Operands, Report, Rule
from unlearn_ext.ops.layout import written as columns_written

needs_kernels = pytest.mark.skipif(bool(why_not(torch.device("cpu"))), reason=why_not(torch.device("cpu")))
#: Marks of a test that runs on the emulated CUDA kernels.
emulated_marks = [needs_kernels, needs_compiler, pytest.mark.emulated]
#: Values of ``fused``: the kernels, the CUDA kernels on CPU tensors, and the reference.
PATHS = [
    pytest.param(True, marks=needs_kernels, id="kernels"),
    pytest.param(True, marks=emulated_marks, id="emulated"),
    pytest.param(False, id="reference"),
]

HYPER = {
    Rule.PROJECT: {Hyper.LR: 1.0},
    Rule.SGD: {Hyper.LR: 0.05, Hyper.BETA1: 0.9, Hyper.BETA2: 0.1, Hyper.WEIGHT_DECAY: 0.02},
    Rule.ADAMW: {
        Hyper.LR: 0.01,
        Hyper.BETA1: 0.9,
        Hyper.BETA2: 0.99,
        Hyper.EPS: 1e-8,
        Hyper.WEIGHT_DECAY: 0.02,
        Hyper.CONSTRAINT_WEIGHT: 0.3,
    },
    Rule.WRAP: {Hyper.LR: 0.05, Hyper.BETA2: 0.99, Hyper.EPS: 1e-8, Hyper.CONSTRAINT_WEIGHT: 0.3},
}
#: Decay of the moving averages of ∇c, the steps that they have seen, and the weight of the next ∇c.
DECAY, COUNT = 0.8, 2.0
FRESH = (1 - DECAY) / (1 - DECAY ** (COUNT + 1))


def operands_like(
    rule: Rule,
    shaped: Sequence[Tensor],
    dtypes: Sequence[torch.dtype],
    seed: int,
    constraints: int = 1,
    averages: bool = False,
) -> Operands:
    """Draw operands with the shapes and strides of ``shaped``.

    Args:
        rule: the kind of step.
        shaped: tensors that are not read, one per row.
        dtypes: those of θ, g2, ∇c, first and second; averages have that of the first moment.
        seed: of the random numbers.
        constraints: number of constraints.
        averages: whether every ∇c has a moving average.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(dtype: torch.dtype, positive: bool = False) -> list[Tensor]:
        drawn = []
        for tensor in shaped:
            values = torch.randn(tensor.shape, generator=generator)
            copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
            drawn.append(copy.copy_(values.square() * 0.1 + 1e-3 if positive else values))
        return drawn

    none: list[None] = [None] * len(shaped)
    param, grad, constraint, first, second = dtypes
    operands = Operands(
        params=none if rule is Rule.PROJECT else draw(param),
        grads=draw(grad),
        constraint_grads=[draw(constraint) for _ in range(constraints)],
        firsts=none if rule is Rule.PROJECT else draw(first),
        seconds=draw(second, positive=True) if rule in (Rule.ADAMW, Rule.WRAP) else none,
        steps=none if rule is Rule.PROJECT else [torch.tensor(3.0) for _ in shaped],
        groups=[0] * len(shaped),
        averages=[draw(first) if averages else none for _ in range(constraints)],
    )
    if rule is Rule.WRAP:  # θ before the step is near θ
        for before, param in zip(operands.firsts, operands.params, strict=True):
            before.mul_(HYPER[rule][Hyper.LR]).add_(param)
    return operands


def cloned(operands: Operands, dtype: torch.dtype | None = None) -> Operands:
    """Return a deep copy with the same strides; ``dtype`` converts all operands but the steps."""

    def copy(tensors: Sequence[Tensor | None], convert: bool = True) -> list[Tensor | None]:
        target = dtype if convert else None
        return [
            None
            if t is None
            else torch.empty_strided(t.shape, t.stride(), dtype=target or t.dtype, device=t.device).copy_(t)
            for t in tensors
        ]

    return Operands(
        copy(operands.params),
        copy(operands.grads),
        copy(operands.firsts),
        copy(operands.seconds),
        copy(operands.steps, convert=False),
        list(operands.groups),
        [copy(grads) for grads in operands.constraint_grads],
        [copy(averages) for averages in operands.averages],
    )


def control_row(
    psi: float = 0.0, equality: bool = False, lambda_max: float = torch.inf, decay: float = 0.0
) -> list[float]:
    """Return the row of ``control`` of a constraint with a given ψ."""
    return [*ops.GIVEN_PSI, psi, float(equality), lambda_max, decay]


def control_of(*rows: list[float], max_norm: float | None = None) -> Tensor:
    """Return ``control`` with these rows of constraints."""
    return torch.tensor(ops.control_block(rows, max_norm), dtype=torch.float64).view(1 + len(rows), -1)


def report_of(constraints: int) -> Tensor:
    """Return an empty ``report``."""
    return torch.zeros(1 + constraints, len(Report), dtype=torch.float64)


def run_step(
    rule: Rule, operands: Operands, psi: float | Sequence[float], fused: bool | None, device: str = "cpu"
) -> TwoPhase:
    """Run both phases with a given ψ, of all constraints or of each; in place; return the step with sums and report."""
    constraints = operands.constraints
    step = TwoPhase(torch.device(device), constraints=constraints, fused=fused)
    for column, value in HYPER[rule].items():
        step.hyper[:, column] = value
    psis = [psi] * constraints if isinstance(psi, float) else psi
    decays = [0.0 if averages[:1] in ([], [None]) else DECAY for averages in operands.averages]
    rows = [control_row(value, decay=decay) for value, decay in zip(psis, decays, strict=True)]
    step.control.copy_(control_of(*rows))
    step.report[1:, Report.CONSTRAINT] = 1.0
    step.report[1:, Report.COUNT] = COUNT
    step.begin(rule, operands)
    step.stats()
    step.apply_()
    return step


def written(rule: Rule, operands: Operands) -> list[Tensor]:
    """Return the tensors that a step writes, without its counters."""
    lists = operands.lists()
    return [t for column in columns_written(rule, operands.constraints)[:-1] for t in lists[column] if t is not None]


def assert_kernels_close(rule: Rule, operands: Operands, psi: float | Sequence[float]) -> None:
    """Check that the kernel's result is the float64 result rounded once to the dtype, within float32's rounding."""
    exact, fused = cloned(operands, torch.float64), cloned(operands)
    oracle = run_step(rule, exact, psi, fused=False)
    step = run_step(rule, fused, psi, fused=True)
    scale = oracle.sums.abs().max()
    torch.testing.assert_close(step.sums, oracle.sums, rtol=1e-5, atol=float(1e-6 * scale) + 1e-30)
    columns = [Report.LAMBDA, Report.FRESH]
    torch.testing.assert_close(step.report[1:, columns], oracle.report[1:, columns], rtol=2e-5, atol=1e-7)
    for got, want in zip(written(rule, fused), written(rule, exact), strict=True):
        ulp = torch.finfo(got.dtype).eps
        magnitude = 1 + want.abs().max().item() if want.numel() else 1
        atol = 2e-5 * magnitude if got.dtype == torch.float32 else ulp
        torch.testing.assert_close(got.double(), want, rtol=ulp, atol=atol)
    for mine, theirs in zip(fused.steps, exact.steps, strict=True):
        assert mine is None or mine.item() == theirs.item() == 4
