"""νPI: a PI controller of the multiplier (Sohrabi et al., ICML 2024)."""

from __future__ import annotations

import torch

from ..models import I2IModel
from ..unlearning.objectives import Objectives
from .method import Gradient, Method, Weights

__all__ = ["AVERAGE", "INTEGRAL", "PROPORTIONAL", "NuPI"]

INTEGRAL = 0.05  # η·K_I
PROPORTIONAL = 0.5  # η·K_P
AVERAGE = 0.0  # ν


class NuPI(Method):
    """A PI controller sets λ from the error e = f1 − ε; then a step along ∇f2 + λ∇f1. The knob is ε.

    λ ← max(λ + η(K_I·e + K_P(ξ − ξ_before)), 0) with ξ = ν·ξ_before + (1 − ν)·e, and ξ_before = e in the first step:
    algorithm 1 of "On PI controllers for updating Lagrange multipliers in constrained optimization", as Cooper
    documents it. (The code of Cooper 1.0.1 has ξ = 0 after its first step, so its second step has an extra
    (1 − ν)·K_P·e.)

    Here η·K_I = 0.05 and η·K_P = 0.5, times ``gain``, and ν = 0, for f1 of order 1 and final λ from 0.003 to 0.3. One
    step size is used for the whole range: small λ overshoot, and large λ are reached late.
    """

    name = "nu-pi"
    knob = "epsilon"

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        self.multiplier = torch.zeros((), device=model.device)
        self._average: torch.Tensor | None = None  # ξ

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        """Update λ; return it and 1."""
        error = loss - self._knob_value
        before = error if self._average is None else self._average
        self._average = AVERAGE * before + (1 - AVERAGE) * error
        change = INTEGRAL * error + PROPORTIONAL * (self._average - before)
        self.multiplier = (self.multiplier + self.gain * change).clamp(min=0)
        return self.multiplier, 1.0
