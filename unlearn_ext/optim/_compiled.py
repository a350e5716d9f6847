"""The step as torch.compile sees it: one operator on tensors, and none of the Python in it.

Learning rate, ε and the other numbers are read by the operator when it runs, so no guard is set on them and a change
compiles nothing anew.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from ..ops.layout import Operands, Rule
from ..ops.registration import fake, operator
from ..ops.two_phase import TwoPhase, check_devices
from . import _distributed
from ._constraint import Constraint


class Steppable(Protocol):
    """What a compiled step needs of an optimizer."""

    _constraint: Constraint
    _groups: list[dict[str, Any]]
    _rule: Rule

    def _operands(self) -> Operands: ...

    def _write_values(self, constrained: bool, hyper: Tensor, control: Tensor) -> None: ...


_owners: WeakValueDictionary[int, "Steppable"] = WeakValueDictionary()
_phases: WeakKeyDictionary["Steppable", TwoPhase] = WeakKeyDictionary()
_numbers = count()


def register(optimizer: "Steppable") -> int:
    """A number by which compiled code finds the optimizer again."""
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
    """Both phases of an optimizer's step, with its numbers as they are now.

    Args:
        owner: number of the optimizer.
        params, grads, constraint_grads: θ, g2, g1; a gradient that is ``None`` reads as zero.
        firsts, seconds, steps: the moments and counters that there are, and beside each list the rows they belong to.
        groups: index of each parameter's group.
        constraint: f1, one element; ``None`` where no constraint is held.
        hyper, control: of :class:`~unlearn_ext.ops.TwoPhase`; written before the step.
        report: likewise; written by the step.
    """
    optimizer, n = _owners[owner], len(params)
    optimizer._write_values(constraint is not None, hyper, control)
    states = _spread(firsts, first_rows, n), _spread(seconds, second_rows, n), _spread(steps, step_rows, n)
    phases = _phases.get(optimizer)  # not the eager steps' own: a compiler may hand in other tensors for its numbers
    if phases is None or phases.device != report.device or len(phases.hyper) != len(hyper):
        phases = _phases[optimizer] = TwoPhase(report.device, len(hyper), optimizer._constraint.fused)
    phases.on(hyper, control, report)
    phases.begin(optimizer._rule, Operands(params, grads, constraint_grads, *states, groups), constraint)
    phases.stats()
    phases.apply_()
    optimizer._constraint.held.consume(grads, constraint_grads)


@fake("optimizer_step_")
def _(
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
    *others: Any,
) -> None:
    _groups, _constraint, *blocks = others
    check_devices(*params, *grads, *constraint_grads, *firsts, *seconds, *steps, *blocks)


def step(optimizer: "Steppable", number: int) -> None:
    """Only where :func:`can_compile` says so."""
    constraint = optimizer._constraint
    phases: TwoPhase = constraint.phases  # type: ignore[assignment]  # can_compile says that they are there
    operands = optimizer._operands()
    states = (*_packed(operands.firsts), *_packed(operands.seconds), *_packed(operands.steps))
    lists = (operands.params, operands.grads, operands.constraint_grads, *states, operands.groups)
    value = None if constraint.held.value is None else constraint.held.value.to(phases.device)
    torch.ops.unlearn_ext.optimizer_step_(number, *lists, value, phases.hyper, phases.control, phases.report)
    constraint.held.release()


def can_compile(optimizer: "Steppable") -> bool:
    """Not the first step, of all or of a new group, which makes state; not a ψ by a Python callable, moving averages, a
    ``GradScaler``, or several processes."""
    constraint = optimizer._constraint
    begun = constraint.phases is not None and len(constraint.phases.hyper) == len(optimizer._groups)
    plain = hasattr(constraint.control, "coefficients") and not constraint.smoothing.on
    alone = not _distributed.initialised()
    return begun and plain and alone and not hasattr(optimizer, "grad_scale")


def _packed(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    """Those that are none but a tensor, as an operator must be given what it writes to; and where they were."""
    rows = [row for row, tensor in enumerate(tensors) if tensor is not None]
    return [tensor for tensor in tensors if tensor is not None], rows


def _spread(tensors: Sequence[Tensor], rows: Sequence[int], count: int) -> Sequence[Tensor | None]:
    """What :func:`_packed` packed."""
    if len(rows) == count:
        return tensors
    spread: list[Tensor | None] = [None] * count
    for row, tensor in zip(rows, tensors, strict=True):
        spread[row] = tensor
    return spread
