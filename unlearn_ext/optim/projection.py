"""The projection alone, for use before any optimizer."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..ops.layout import Hyper, Operands, Rule
from ._constraint import Constraint, ControlFunction
from ._distributed import Replicas
from ._smoothing import Smoothing
from .base import not_negative
from .control import StepStats

__all__ = ["EpsilonProjection"]


class EpsilonProjection:
    """In-place projection of ``p.grad`` = ∇f2 to g = argmin ‖g − ∇f2‖² s.t. ⟨∇f1, g⟩ ≥ ψ, before any optimizer's step.

    **Limitation.** The guarantee ⟨∇f1, Δθ⟩ ≤ −μψ holds only for a plain SGD step. Momentum adds old gradients, and Adam
    rescales every coordinate: with Adam, f1 misses ε by 20–60 % and f2 is worse. Use :class:`EpsilonSGD` or
    :class:`EpsilonAdamW` if you can.

    Args:
        params: tensors, named or not, or parameter groups, as in ``torch.optim`` (the groups' options are ignored).
        control: ψ; ``EpsilonGap(rate=…)`` needs the learning rate to convert ``rate`` to ψ: give it as ``lr``.
        lr: learning rate of the optimizer that takes the step.
        max_norm, lambda_max, fused, process_group: as in :class:`EpsilonSGD`.

    Raises:
        TypeError: ``params`` that no torch optimizer accepts.
        ValueError: no parameters, or an argument is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        control: ControlFunction,
        *,
        lr: float = 1.0,
        max_norm: float | None = None,
        lambda_max: float | None = None,
        fused: bool | None = None,
        process_group: Replicas = "default",
    ) -> None:
        not_negative("EpsilonProjection", lr=lr)
        groups = torch.optim.SGD(params).param_groups  # torch parses tensors, groups and names
        self.params: list[Tensor] = [param for group in groups for param in group["params"]]
        self.lr = lr
        self._constraint = Constraint(control, max_norm, lambda_max, fused, Smoothing(0.0, 0.0), process_group)

    @property
    def stats(self) -> StepStats:
        """The values of the last projection; raises ``RuntimeError`` before the first."""
        return self._constraint.stats()

    def hold_constraint(self, value: Tensor) -> None:
        """Take every ``p.grad`` as ∇f1; see :meth:`EpsilonSGD.hold_constraint`."""
        self._constraint.hold(value, self.params)

    @torch.no_grad()
    def project_(self) -> None:
        """Replace ``p.grad`` by g, in place.

        A parameter without ∇f2 gets λ∇f1. If any value is not finite, no gradient is changed.
        """
        held = self._constraint.held.of(self.params)
        rows = [(p, g1) for p, g1 in zip(self.params, held, strict=True) if p.grad is not None or g1 is not None]
        if not rows:
            return
        for param, _ in rows:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        none = [None] * len(rows)
        operands = Operands(none, [p.grad for p, _ in rows], [g1 for _, g1 in rows], none, none, none, [0] * len(rows))
        hyper: list[list[float | Tensor]] = [[self.lr if column is Hyper.LR else 0.0 for column in Hyper]]
        self._constraint.run(Rule.PROJECT, operands, hyper, self.params[0].device)
