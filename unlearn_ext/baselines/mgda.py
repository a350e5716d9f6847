"""Multiple gradient descent: the convex combination of least norm (Désidéri, 2012; Sener and Koltun, NeurIPS 2018)."""

from __future__ import annotations

import torch

from ..ops import halfspace_stats
from .method import Gradient, Method, Weights

__all__ = ["MGDA"]


class MGDA(Method):
    """A step along g = a·∇f1 + (1 − a)·∇f2, with a = min(max((‖∇f2‖² − ⟨∇f1, ∇f2⟩)/‖∇f1 − ∇f2‖², 0), 1).

    A small step reduces both f1 and f2. The unmodified model has f2 = 0, the minimum, so it is Pareto optimal: apart
    from rounding errors, MGDA does not change it. There is no knob.
    """

    name = "mgda"
    knob = None

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        """Return a and 1 − a."""
        square2, dot, square1 = halfspace_stats(g2, g1)
        apart = square1 + square2 - 2 * dot
        a = torch.where(apart > 0, (square2 - dot) / apart, 0.5).clamp(0, 1)  # equal gradients: any a gives the same
        return a, 1 - a
