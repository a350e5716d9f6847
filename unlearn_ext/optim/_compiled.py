"""The step under torch.compile: one operator on tensors, whose Python code is not traced.

The operator reads learning rate, ε and the other numbers when it runs, so torch.compile sets no guards on them and a
change does not cause a recompilation.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from ..ops.layout import Operands, Rule
from ..ops.registration import fake, fake_in_place, operator
from ..ops.two_phase import TwoPhase
from . import _distributed
from ._constraint import Constraint


class Steppable(Protocol):
    """The attributes and methods of an optimizer that a compiled step uses."""

    _constraint: Constraint
    _groups: list[dict[str, Any]]
    _rule: Rule

    def _operands(self) -> Operands: ...

    def _write_values(self, constrained: bool, hyper: Tensor, control: Tensor) -> None: ...


_owners: WeakValueDictionary[int, "Steppable"] = WeakValueDictionary()
_phases: WeakKeyDictionary["Steppable", TwoPhase] = WeakKeyDictionary()
_numbers = count()


def register(optimizer: "Steppable") -> int:
    """Return a number by which compiled code finds the optimizer."""
    number = next(_numbers)
    _owners[number] = optimizer
    return number


@operator(mutates=["params", "firsts", "seconds", "steps", "hyper", "control", "report"])
def optimizer_step_(
    owner: int,
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    constraint_grads: Sequence[Tensor | None],
    firsts: Sequence[Tensor],
    first_rows: Sequence[int],
    seconds: Sequence[Tensor],
    second_rows: Sequence[int],
    steps: Sequence[Tensor],
    step_rows: Sequence[int],
    groups: Sequence[int],
    constraint: Tensor | None,
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
) -> None:
    """Run both phases of an optimizer's step, with the current learning rate, ε and other numbers.

    Args:
        owner: number of the optimizer.
        params: θ.
        grads: g2; ``None`` counts as zero.
        constraint_grads: g1; ``None`` counts as zero.
        firsts: the momentum buffers or first moments that exist.
        first_rows: the row in ``params`` of each of ``firsts``.
        seconds: the second moments that exist.
        second_rows: the row in ``params`` of each of ``seconds``.
        steps: the step counters that exist.
        step_rows: the row in ``params`` of each of ``steps``.
        groups: index of each parameter's group.
        constraint: f1, one element; ``None`` if no constraint is held.
        hyper: buffer of :class:`~unlearn_ext.ops.TwoPhase`; written before the step.
        control: buffer of :class:`~unlearn_ext.ops.TwoPhase`; written before the step.
        report: buffer of :class:`~unlearn_ext.ops.TwoPhase`; written by the step.
    """
    optimizer, n = _owners[owner], len(params)
    optimizer._write_values(constraint is not None, hyper, control)
    states = _spread(firsts, first_rows, n), _spread(seconds, second_rows, n), _spread(steps, step_rows, n)
    phases = _phases.get(optimizer)  # not the eager step's: a compiler may pass copies of the buffers
    if phases is None or phases.device != report.device or len(phases.hyper) != len(hyper):
        phases = _phases[optimizer] = TwoPhase(report.device, len(hyper), optimizer._constraint.fused)
    phases.on(hyper, control, report)
    phases.begin(optimizer._rule, Operands(params, grads, constraint_grads, *states, groups), constraint)
    phases.stats()
    phases.apply_()
    optimizer._constraint.held.consume(grads, constraint_grads)


fake("optimizer_step_")(fake_in_place)


def step(optimizer: "Steppable", number: int) -> None:
    """Take a step as one operator call; the caller must check :func:`can_compile` first."""
    constraint = optimizer._constraint
    phases: TwoPhase = constraint.phases  # type: ignore[assignment]  # can_compile says that they are there
    operands = optimizer._operands()
    states = (*_packed(operands.firsts), *_packed(operands.seconds), *_packed(operands.steps))
    lists = (operands.params, operands.grads, operands.constraint_grads, *states, operands.groups)
    value = None if constraint.held.value is None else constraint.held.value.to(phases.device)
    torch.ops.unlearn_ext.optimizer_step_(number, *lists, value, phases.hyper, phases.control, phases.report)
    constraint.held.release()


def can_compile(optimizer: "Steppable") -> bool:
    """Return whether the next step can be compiled.

    Not supported: the first step, also the first after a group was added, because it creates state; a control that is
    a Python callable; moving averages; ``GradScaler``; distributed training.
    """
    constraint = optimizer._constraint
    begun = constraint.phases is not None and len(constraint.phases.hyper) == len(optimizer._groups)
    plain = hasattr(constraint.control, "coefficients") and not constraint.smoothing.on
    alone = not _distributed.initialised()
    return begun and plain and alone and not hasattr(optimizer, "grad_scale")


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
