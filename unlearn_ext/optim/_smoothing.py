"""Moving averages of f1 and of g1 against minibatch noise ("Bloop", 2024): a noisy g1 projects towards nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Smoothing:
    """Bias-corrected exponential moving averages that stand in for f1 and g1 in the step.

    The averages move on only where the step was taken: a skipped step leaves no trace in them.

    Args:
        value: decay of f1's average, in [0, 1); 0: none.
        grad: decay of g1's average, in [0, 1); 0: none.
    """

    #: Names of the numbers that outlive a step, which the caller keeps: 0-d float64 tensors, zero at first.
    KEPT = ("smoothed_steps", "smoothed_constraint")

    def __init__(self, value: float, grad: float) -> None:
        for name, decay in (("constraint_ema", value), ("constraint_grad_ema", grad)):
            if not 0 <= decay < 1:
                raise ValueError(f"{name}={decay!r} must lie in [0, 1); 0 is no averaging")
        self.value_decay, self.grad_decay = value, grad

    @property
    def on(self) -> bool:
        return self.value_decay > 0 or self.grad_decay > 0

    def apply(
        self, value: Tensor, grads: Sequence[Tensor | None], averages: Sequence[Tensor | None], kept: dict[str, Tensor]
    ) -> Tensor:
        """Return the averages with this step's f1 and g1 in them; :meth:`keep` confirms them.

        Args:
            value: f1, 0-d.
            grads: g1, overwritten with its corrected average where there is one.
            averages: of each parameter's g1, uncorrected; ``None`` where none is kept.
            kept: the numbers that outlive a step.

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
        """Take the averages over, unless the step was skipped (bool, 0-d)."""
        correction = _correction(self.grad_decay, kept)
        for average, grad in self._pairs:
            average.copy_(torch.where(skipped, average, grad * correction.to(grad.dtype)))
        value, steps = kept["smoothed_constraint"], kept["smoothed_steps"]
        value.copy_(torch.where(skipped, value, self._next))
        steps.add_(torch.where(skipped, 0.0, 1.0))
        self._pairs = []


def _correction(decay: float, kept: dict[str, Tensor]) -> Tensor:
    return 1 - decay ** (kept["smoothed_steps"] + 1)
