"""The projection alone, in front of any optimizer."""

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
    """Rewrites ``p.grad`` = ∇f2 in place with g = argmin ‖g − ∇f2‖² s.t. ⟨∇f1, g⟩ ≥ ψ; then any optimizer steps.

    **What is lost.** The guarantee ⟨∇f1, Δθ⟩ ≤ −μψ holds for a plain SGD step only. Momentum mixes old gradients
    in, and Adam rescales every coordinate: handed to Adam, ε is missed by 20–60 % and f2 pays for it. Use
    :class:`EpsilonSGD` or :class:`EpsilonAdamW` where they will do.

    Args:
        params: tensors, named or not, or parameter groups, as ``torch.optim`` takes them (groups' options are ignored).
        control: ψ; ``EpsilonGap(rate=…)`` needs the learning rate to turn a share of the gap into ψ: give it as ``lr``.
        lr: learning rate of the optimizer that will step.
        max_norm, lambda_max, fused, process_group: as in :class:`EpsilonSGD`.

    Raises:
        TypeError: parameters that no optimizer of torch would take.
        ValueError: no parameters, or an argument out of range.
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
        groups = torch.optim.SGD(params).param_groups  # tensors, groups, names: as torch reads them
        self.params: list[Tensor] = [param for group in groups for param in group["params"]]
        self.lr = lr
        self._constraint = Constraint(control, max_norm, lambda_max, fused, Smoothing(0.0, 0.0), process_group)

    @property
    def stats(self) -> StepStats:
        """What the last projection saw and did; raises ``RuntimeError`` before the first."""
        return self._constraint.stats()

    def hold_constraint(self, value: Tensor) -> None:
        """Takes every ``p.grad`` as ∇f1; see :meth:`EpsilonSGD.hold_constraint`."""
        self._constraint.hold(value, self.params)

    @torch.no_grad()
    def project_(self) -> None:
        """``p.grad`` ← g. A parameter with no ∇f2 gets λ∇f1. If any value is not finite, no gradient is written."""
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
