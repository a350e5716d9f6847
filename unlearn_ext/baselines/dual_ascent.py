"""Lagrangian dual ascent: min over θ, max over λ ≥ 0, of f2 + λ(f1 − ε) (Arrow, Hurwicz and Uzawa, 1958)."""

from __future__ import annotations

import torch

from ..models import I2IModel
from ..objectives import Objectives
from .method import Gradient, Method, Weights

RATE = 0.01  # of λ


class DualAscent(Method):
    """The same problem as ours: λ ← max(λ + η(f1 − ε), 0), then a step along ∇f2 + λ∇f1. The knob is ε."""

    name = "dual-ascent"
    knob = "epsilon"

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        self.multiplier = torch.zeros((), device=model.device)

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        self.multiplier = (self.multiplier + RATE * (loss - self.value)).clamp(min=0)
        return self.multiplier, 1.0
