"""Augmented Lagrangian: a multiplier and a quadratic penalty (Hestenes, 1969; Powell, 1969; as in Cooper 1.0.1)."""

from __future__ import annotations

import torch

from ..models import I2IModel
from ..unlearning.objectives import Objectives
from .method import Gradient, Method, Weights

__all__ = ["PENALTY", "RATE", "AugmentedLagrangian"]

PENALTY = 0.1  # c
RATE = 0.01  # η, of λ


class AugmentedLagrangian(Method):
    """A step along ∇f2 + max(λ + c·e, 0)·∇f1 with e = f1 − ε, then λ ← max(λ + η·e, 0). The knob is ε.

    The weight of ∇f1 is the derivative of (max(λ + c·e, 0)² − λ²)/2c, Nocedal and Wright's eq. 17.65, which is Cooper's
    ``AugmentedLagrangian`` for an inequality. As there, one gradient step replaces the inner minimization, λ has a step
    size of its own, and c is constant unless the user adds an updater. c = 0.1 and η = 0.01, times ``gain``, are for f1
    of order 1: with five times as much, the tiny model of the tests ends at 0.28 of its f1 where 0.5 is asked for, in
    place of 0.41. One step size serves all λ at rest, from 0.003 to 0.3: small ones overshoot, large ones arrive late.
    """

    name = "augmented-lagrangian"
    knob = "epsilon"

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        self.multiplier = torch.zeros((), device=model.device)

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        error = loss - self.value
        weight = (self.multiplier + self.gain * PENALTY * error).clamp(min=0)
        self.multiplier = (self.multiplier + self.gain * RATE * error).clamp(min=0)
        return weight, 1.0
