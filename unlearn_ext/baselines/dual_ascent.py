"""Dual ascent on the logarithm of the multiplier: min over θ, max over λ > 0, of f2 + λ(f1 − ε)."""

from __future__ import annotations

import torch

from ..models import I2IModel
from ..unlearning.objectives import Objectives
from .method import Gradient, Method, Weights

__all__ = ["INTEGRAL", "PROPORTIONAL", "START", "DualAscent"]

INTEGRAL = 0.2
PROPORTIONAL = 2.0
START = 0.003  # λ before the first step


class DualAscent(Method):
    """A PI controller of ℓ = log λ, then a step along ∇f2 + λ∇f1. The knob is ε.

    ℓ ← ℓ + 0.2·e + 2·(e − e_before), with the relative error e = (f1 − ε)/max(f1, ε), which is between −1 and 1, and
    e_before = 0 at the first step. ``gain`` multiplies both constants.

    The saddle-point method is that of Arrow, Hurwicz and Uzawa (1958); multiplicative instead of additive updates of λ
    are exponentiated gradients (Kivinen and Warmuth, 1997). Along a front, the λ that keeps f1 at ε ranges over two
    orders of magnitude (0.003 to 0.3). The additive update λ ← max(λ + η(f1 − ε), 0) has one step size for all of them,
    and takes hundreds of steps to reach the largest. λ is never 0: if f1 < ε, the integral term reduces it by at most a
    factor exp(−0.2) per step.
    """

    name = "dual-ascent"
    knob = "epsilon"

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        self.multiplier = torch.full((), START, device=model.device)
        self._error = torch.zeros((), device=model.device)

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        """Update λ; return it and 1."""
        epsilon = self._knob_value
        error = (loss - epsilon) / loss.clamp(min=max(epsilon, 1e-12))  # the clamp is max(f1, ε), never 0
        change = INTEGRAL * error + PROPORTIONAL * (error - self._error)
        self._error = error
        self.multiplier = self.multiplier * (self.gain * change).exp()
        return self.multiplier, 1.0
