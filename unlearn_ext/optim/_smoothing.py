"""Moving averages of f1 and of g1 against minibatch noise ("Bloop", 2024).

Projecting onto the half-space of a noisy g1 does little for the full-data constraint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Smoothing:
    """Bias-corrected exponential moving averages that replace f1 and g1 in the step.

    A skipped step does not change the averages.

    Args:
        value: decay of f1's average, in [0, 1); 0: no averaging.
        grad: decay of g1's average, in [0, 1); 0: no averaging.
    """

    #: Names of the values that persist between steps, which the caller stores: 0-d float64 tensors, zero at first.
    KEPT = ("smoothed_steps", "smoothed_constraint")

    def __init__(self, value: float, grad: float) -> None:
        for name, decay in (("constraint_ema", value), ("constraint_grad_ema", grad)):
            if not 0 <= decay < 1:
                raise ValueError(f"{name}={decay!r} must lie in [0, 1); 0 is no averaging")
        self.value_decay, self.grad_decay = value, grad

    @property
    def on(self) -> bool:
        """Whether f1 or g1 is averaged."""
        return self.value_decay > 0 or self.grad_decay > 0

    def apply(
        self, value: Tensor, grads: Sequence[Tensor | None], averages: Sequence[Tensor | None], kept: dict[str, Tensor]
    ) -> Tensor:
        """Replace f1 and g1 by their averages including this step; :meth:`keep` then stores the averages.

        Args:
            value: f1, 0-d.
            grads: g1, overwritten with its corrected average if there is one.
            averages: uncorrected average of each parameter's g1; ``None`` if it is not averaged.
            kept: the values that persist between steps.

        Returns:
            f1's corrected average, 0-d.
        """
        for name in self.KEPT:
            kept[name] = kept[name].to(value.device)
        self._next = kept["smoothed_constraint"].lerp(value.to(torch.float64), 1 - self.value_decay)
        self._pairs = [(a, g) for a, g in zip(averages, grads, strict=True) if a is not None and g is not None]
        correction = _correction(self.grad_decay, kept)
        for average, grad in self._pairs:
            grad.mul_(1 - self.grad_decay).add_(average, alpha=self.grad_decay).div_(correction.to(grad.dtype))
        return self._next / _correction(self.value_decay, kept)

    def keep(self, skipped: Tensor, kept: dict[str, Tensor]) -> None:
        """Store the averages, unless the step was skipped (bool, 0-d)."""
        correction = _correction(self.grad_decay, kept)
        for average, grad in self._pairs:
            average.copy_(torch.where(skipped, average, grad * correction.to(grad.dtype)))
        value, steps = kept["smoothed_constraint"], kept["smoothed_steps"]
        value.copy_(torch.where(skipped, value, self._next))
        steps.add_(torch.where(skipped, 0.0, 1.0))
        self._pairs = []


def _correction(decay: float, kept: dict[str, Tensor]) -> Tensor:
    return 1 - decay ** (kept["smoothed_steps"] + 1)
