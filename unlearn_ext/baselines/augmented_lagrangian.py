"""Augmented Lagrangian: a multiplier and a quadratic penalty (Hestenes, 1969; Powell, 1969; as in Cooper 1.0.1)."""

from __future__ import annotations

import torch

from ..models import I2IModel
from ..unlearning.objectives import Objectives
from .method import Gradient, Method, Weights

__all__ = ["PENALTY", "RATE", "AugmentedLagrangian"]

PENALTY = 0.1  # c
RATE = 0.01  # η, step size of λ


class AugmentedLagrangian(Method):
    """A step along ∇f2 + max(λ + c·e, 0)·∇f1 with e = f1 − ε, then λ ← max(λ + η·e, 0). The knob is ε.

    The weight of ∇f1 is the derivative of (max(λ + c·e, 0)² − λ²)/2c, eq. 17.65 of Nocedal and Wright, as in Cooper's
    ``AugmentedLagrangian`` for an inequality. As in Cooper, one gradient step replaces the inner minimization, λ has a
    separate step size, and c is constant (in Cooper, unless the user adds an updater).

    c = 0.1 and η = 0.01, times ``gain``, suit f1 of order 1: with five times these values, the tiny model of the tests
    ends at 0.28 of its initial f1 for a target of 0.5, instead of 0.41. One step size is used for all final values of
    λ, from 0.003 to 0.3: small λ overshoot, and large λ are reached late.
    """

    name = "augmented-lagrangian"
    knob = "epsilon"

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        self.multiplier = torch.zeros((), device=model.device)

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        """Return max(λ + c·e, 0) and 1, and update λ."""
        error = loss - self._knob_value
        weight = (self.multiplier + self.gain * PENALTY * error).clamp(min=0)
        self.multiplier = (self.multiplier + self.gain * RATE * error).clamp(min=0)
        return weight, 1.0
