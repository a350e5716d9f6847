"""The step under torch.compile: one operator on tensors, whose Python code is not traced.

The operator reads learning rate, ε and the other numbers when it runs, so torch.compile sets no guards on them and a
change does not cause a recompilation.
"""

from collections.abc import Sequence
from itertools import chain, count
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from ..ops.layout import Operands, Rule
from ..ops.registration import fake, fake_in_place, operator
from ..ops.two_phase import TwoPhase
from . import _distributed
from ._constraints import Constraints, named


class Steppable(Protocol):
    """The attributes and methods of an optimizer that a compiled step uses."""

    _constraints: Constraints
    _groups: list[dict[str, Any]]
    _rule: Rule

    def _operands(self) -> Operands: ...

    def _write_values(self, hyper: Tensor, control: Tensor) -> None: ...


_owners: WeakValueDictionary[int, "Steppable"] = WeakValueDictionary()
_phases: WeakKeyDictionary["Steppable", TwoPhase] = WeakKeyDictionary()
_numbers = count()


def register(optimizer: "Steppable") -> int:
    """Return a number by which compiled code finds the optimizer."""
    number = next(_numbers)
    _owners[number] = optimizer
    return number


@operator(mutates=["params", "firsts", "seconds", "steps", "averages", "hyper", "control", "report"])
def optimizer_step_(
    owner: int,
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    firsts: Sequence[Tensor],
    first_rows: Sequence[int],
    seconds: Sequence[Tensor],
    second_rows: Sequence[int],
    steps: Sequence[Tensor],
    step_rows: Sequence[int],
    groups: Sequence[int],
    constraint_grads: Sequence[Tensor | None],
    averages: Sequence[Tensor],
    values: Sequence[Tensor],
    rows: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
) -> None:
    """Run both phases of an optimizer's step, with the current learning rate, ε and other numbers.

    Args:
        owner: number of the optimizer.
        params: θ.
        grads: g2; ``None`` counts as zero.
        firsts: the momentum buffers or first moments that exist.
        first_rows: the row in ``params`` of each of ``firsts``.
        seconds: the second moments that exist.
        second_rows: the row in ``params`` of each of ``seconds``.
        steps: the step counters that exist.
        step_rows: the row in ``params`` of each of ``steps``.
        groups: index of each parameter's group.
        constraint_grads: ∇c of each held constraint, one list after the other; ``None`` counts as zero.
        averages: the moving averages of ∇c, one list after the other; empty if nothing is averaged.
        values: c of each held constraint, one element each.
        rows: index of each held constraint among the optimizer's.
        hyper: buffer of :class:`~unlearn_ext.ops.TwoPhase`; written before the step.
        control: buffer of :class:`~unlearn_ext.ops.TwoPhase`; written before the step.
        report: buffer of :class:`~unlearn_ext.ops.TwoPhase`; written by the step.
    """
    optimizer, n = _owners[owner], len(params)
    optimizer._write_values(hyper, control)
    states = _spread(firsts, first_rows, n), _spread(seconds, second_rows, n), _spread(steps, step_rows, n)
    operands = Operands(
        params, grads, *states, groups, _by_constraint(constraint_grads, n), _by_constraint(averages, n)
    )
    phases = _phases.get(optimizer)  # not the eager step's: a compiler may pass copies of the buffers
    sizes = report.device, len(hyper), len(control)
    if phases is None or sizes != (phases.device, len(phases.hyper), len(phases.control)):
        phases = TwoPhase(report.device, len(hyper), len(control) - 1, optimizer._constraints.fused)
        _phases[optimizer] = phases
    phases.on(hyper, control, report)
    phases.begin(optimizer._rule, operands, values, rows)
    phases.stats()
    phases.apply_()
    optimizer._constraints.held.consume(grads, operands.constraint_grads)


fake("optimizer_step_")(fake_in_place)


def step(optimizer: "Steppable", number: int) -> None:
    """Take a step as one operator call; the caller must check :func:`can_compile` first."""
    constraints = optimizer._constraints
    phases: TwoPhase = constraints.phases  # type: ignore[assignment]  # can_compile says that they are there
    operands, held = optimizer._operands(), constraints.held
    states = (*_packed(operands.firsts), *_packed(operands.seconds), *_packed(operands.steps))
    gradients = list(chain.from_iterable(operands.constraint_grads))
    averages = _packed(list(chain.from_iterable(operands.averages)))[0]
    values = [held.value_of(name).to(phases.device) for name in held.names]
    torch.ops.unlearn_ext.optimizer_step_(
        number, operands.params, operands.grads, *states, operands.groups, gradients, averages, values,
        constraints.rows_of(held.names), phases.hyper, phases.control, phases.report,
    )  # fmt: skip
    held.release()


def can_compile(optimizer: "Steppable") -> bool:
    """Return whether the next step can be compiled.

    Not supported: the first step, also the first after a group or a constraint was added, because it creates state; a
    control that is a Python callable; ``GradScaler``; distributed training.
    """
    constraints = optimizer._constraints
    plain = all(hasattr(control, "coefficients") for control in named(constraints.control).values())
    ready = constraints.is_ready(len(optimizer._groups)) and plain
    return ready and not _distributed.initialised() and not hasattr(optimizer, "grad_scale")


def _by_constraint(tensors: Sequence[Tensor | None], rows: int) -> list[list[Tensor | None]]:
    """Split what several constraints have, one list after the other."""
    return [list(tensors[begin : begin + rows]) for begin in range(0, len(tensors), rows)]


def _packed(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    """Drop Nones (mutable operator arguments cannot be None); return tensors and row indices."""
    rows = [row for row, tensor in enumerate(tensors) if tensor is not None]
    return [tensor for tensor in tensors if tensor is not None], rows


def _spread(tensors: Sequence[Tensor], rows: Sequence[int], count: int) -> Sequence[Tensor | None]:
    """Undo :func:`_packed`: return a list of ``count`` rows with ``None`` where there is no tensor."""
    if len(rows) == count:
        return tensors
    spread: list[Tensor | None] = [None] * count
    for row, tensor in zip(rows, tensors, strict=True):
        spread[row] = tensor
    return spread
