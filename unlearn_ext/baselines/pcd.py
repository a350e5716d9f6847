"""Priority-Constrained Descent (PCD; arXiv 2606.29521, TMLR 2026; as in TorchJD 0.18)."""

from __future__ import annotations

import torch

from ..models import I2IModel
from ..ops import halfspace_stats
from ..unlearning.objectives import Objectives
from .method import Gradient, Method, Weights

__all__ = ["DECAY", "EPSILON", "FLOOR", "PCD"]

DECAY = 0.999  # of the averages of ‖g‖², as in TorchJD
EPSILON = 1e-8  # added to the averages, as in TorchJD
FLOOR = 1e-3  # minimum length of the result, relative to τ‖∇f1‖; not in the original


class PCD(Method):
    """The direction closest to ∇f2 with at least a fraction τ of the progress on f1. The knob is τ, from 0 to 1.

    With s_i = 1/√(v_i + 1e-8), v_i the bias-corrected exponential moving average (0.999) of ‖∇f_i‖², and
    g̃_i = s_i·∇f_i, solve

        min over d of ½‖d − g̃_2‖²  subject to  ⟨g̃_1, d⟩ ≥ τ‖g̃_1‖²,

    that is d = g̃_2 + max(τ − ⟨g̃_1, g̃_2⟩/‖g̃_1‖², 0)·g̃_1. The optimizer gets ‖∇f2‖·d/‖d‖. The primary objective is f2,
    the secondary one f1.

    Difference from the original: the length ‖∇f2‖ is replaced with τ‖∇f1‖/1000 if that is larger. The unmodified model
    has ∇f2 = 0, for which the original returns 0 and never changes the model.

    τ controls how fast f1 decreases, not its final value: if ∇f1 and ∇f2 are opposite, d = τ·g̃_1, so f1 decreases in
    every step. The final f1 depends on τ, the learning rate and the number of steps, and is known only after training.
    With a loss scaler, the averages adapt slowly when its scale changes.
    """

    name = "pcd"
    knob = "tau"
    default = 0.02
    grid = (0.02, 0.05, 0.1, 0.25, 0.6)
    most = 1.0

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        self._squares: float | torch.Tensor = 0.0  # averages of ‖∇f1‖² and ‖∇f2‖², float64 [2]
        self._steps: int | torch.Tensor = 0  # number of steps in the averages

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        """Return the weights of ∇f1 and ∇f2 in ‖∇f2‖·d/‖d‖, and update the averages."""
        tau = self._knob_value
        square2, dot, square1 = halfspace_stats(g2, g1)
        squares = torch.stack((square1, square2))
        finite = squares.isfinite().all()
        self._steps = steps = self._steps + finite.to(squares.dtype)  # on the device: no synchronisation
        averages = torch.where(finite, DECAY * self._squares + (1 - DECAY) * squares, self._squares)
        self._squares = averages
        scale1, scale2 = (averages / (1 - DECAY**steps) + EPSILON).rsqrt()
        square1, square2, dot = squares[0] * scale1**2, squares[1] * scale2**2, dot * scale1 * scale2
        raised = torch.where(square1 > 0, tau - dot / square1, 0.0).clamp(min=0)
        # If the constraint is active, d is τ·g̃_1 plus the part of g̃_2 orthogonal to g̃_1; this avoids cancellation.
        active = (square2 - dot**2 / square1).clamp(min=0) + tau**2 * square1
        square = torch.where(raised > 0, active, square2)
        wanted = torch.maximum(squares[1], (FLOOR * tau) ** 2 * squares[0])
        length = torch.where(square > 1e-12 * square2, (wanted / square).sqrt(), 0.0)
        return length * raised * scale1, length * scale2
