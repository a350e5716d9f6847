"""Moving averages of f1 and of g1 against minibatch noise ("Bloop", 2024): a noisy g1 projects towards nothing."""

from __future__ import annotations

import torch
from torch import Tensor


class Smoothing:
    """Bias-corrected exponential moving averages that stand in for f1 and g1 in the step.

    The averages move on only where the step was taken: a skipped step leaves no trace in them.

    Args:
        value: decay of f1's average, in [0, 1); 0: none.
        grad: decay of g1's average, in [0, 1); 0: none.
    """

    def __init__(self, value: float, grad: float) -> None:
        for name, decay in (("constraint_ema", value), ("constraint_grad_ema", grad)):
            if not 0 <= decay < 1:
                raise ValueError(f"{name}={decay!r} must lie in [0, 1); 0 is no averaging")
        self.value_decay, self.grad_decay = value, grad
        self.steps = torch.zeros((), dtype=torch.float64)
        self.value = torch.zeros((), dtype=torch.float64)

    @property
    def on(self) -> bool:
        return self.value_decay > 0 or self.grad_decay > 0

    def apply(self, value: Tensor, grads: list[Tensor | None], averages: list[Tensor | None]) -> Tensor:
        """The averages with this step's f1 and g1 in them; to be confirmed by :meth:`keep`.

        Args:
            value: f1, 0-d.
            grads: g1, overwritten with its corrected average where there is one.
            averages: of each parameter's g1, uncorrected; ``None`` where none is kept.

        Returns:
            f1's corrected average, 0-d.
        """
        self.steps, self.value = self.steps.to(value.device), self.value.to(value.device)
        self._next = self.value.lerp(value.to(self.value.dtype), 1 - self.value_decay)
        self._pairs = [(a, g) for a, g in zip(averages, grads, strict=True) if a is not None and g is not None]
        correction = self._correction(self.grad_decay)
        for average, grad in self._pairs:
            grad.mul_(1 - self.grad_decay).add_(average, alpha=self.grad_decay).div_(correction.to(grad.dtype))
        return self._next / self._correction(self.value_decay)

    def keep(self, skipped: Tensor) -> None:
        """Takes the averages over, unless the step was skipped (bool, 0-d)."""
        correction = self._correction(self.grad_decay)
        for average, grad in self._pairs:
            average.copy_(torch.where(skipped, average, grad * correction.to(grad.dtype)))
        self.value = torch.where(skipped, self.value, self._next)
        self.steps = torch.where(skipped, self.steps, self.steps + 1)
        self._pairs = []

    def memory(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: 0-d tensors."""
        return {"smoothed_steps": self.steps, "smoothed_constraint": self.value}

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.steps, self.value = memory["smoothed_steps"], memory["smoothed_constraint"]

    def _correction(self, decay: float) -> Tensor:
        return 1 - decay ** (self.steps + 1)
