"""The step as torch.compile sees it: custom operators on tensors, and none of the Python between them.

Learning rate, ε and the other numbers are read by an operator when it runs, so no guard is set on them and a change
compiles nothing anew.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..layout import Report, Rule
from . import distributed

if TYPE_CHECKING:
    from .base import EpsilonOptimizer

_owners: WeakValueDictionary[int, EpsilonOptimizer] = WeakValueDictionary()
_numbers = count()


def register(optimizer: EpsilonOptimizer) -> int:
    """A number by which compiled code finds the optimizer again."""
    number = next(_numbers)
    _owners[number] = optimizer
    return number


@torch.library.custom_op("unlearn_ext::current_values_", mutates_args=("hyper", "control"))
def current_values_(owner: int, constrained: bool, hyper: Tensor, control: Tensor) -> None:
    """Writes an optimizer's numbers as they are now.

    Args:
        owner: number of the optimizer.
        constrained: whether a constraint is held.
        hyper: float64 ``[groups, 8]``, columns as in ``layout.Hyper``.
        control: float64 ``[10]``, entries as in ``layout.Control``.
    """
    _owners[owner].write_values(constrained, hyper, control)


@current_values_.register_fake
def _(owner, constrained, hyper, control):
    return None


def step(optimizer: EpsilonOptimizer, number: int) -> None:
    """Both phases, as two operators; only where :func:`can_compile` says so."""
    constraint = optimizer._constraint
    phases = constraint.phases
    operands = optimizer._operands()
    constrained = constraint.value is not None
    torch.ops.unlearn_ext.current_values_(number, constrained, phases.hyper, phases.control)
    if constrained:
        phases.report[Report.CONSTRAINT].copy_(constraint.value)
    lists = (operands.params, operands.grads, operands.constraint_grads)
    numbers = (operands.groups, phases.hyper, phases.control, phases.report, constraint.fused)
    steps = [] if operands.steps[0] is None else operands.steps
    if optimizer._rule is Rule.SGD:
        buffers = [] if operands.firsts[0] is None else operands.firsts
        torch.ops.unlearn_ext.sgd_step_(*lists, buffers, steps, *numbers)
    else:
        torch.ops.unlearn_ext.adamw_step_(*lists, operands.firsts, operands.seconds, steps, *numbers)
    constraint.release()


def can_compile(optimizer: EpsilonOptimizer) -> bool:
    """Not the first step, which makes state; not a ψ by a Python callable, moving averages, a ``GradScaler``, or
    several processes."""
    constraint = optimizer._constraint
    plain = hasattr(constraint.control, "coefficients") and not constraint.smoothing.on
    alone = not distributed.initialised()
    return constraint.phases is not None and plain and alone and not hasattr(optimizer, "grad_scale")
