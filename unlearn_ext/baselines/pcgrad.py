"""Gradient surgery: PCGrad (Yu et al., NeurIPS 2020)."""

from __future__ import annotations

import torch

from ..ops import halfspace_stats
from .method import Gradient, Method, Weights

__all__ = ["PCGrad"]


class PCGrad(Method):
    """The sum of ∇f1 and ∇f2; if they conflict, each without its component along the other.

    g = ∇f1 − min(c, 0)/‖∇f2‖²·∇f2 + ∇f2 − min(c, 0)/‖∇f1‖²·∇f1 with c = ⟨∇f1, ∇f2⟩.
    """

    name = "pcgrad"
    knob = None

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        """Return the weights of ∇f1 and ∇f2 in g."""
        square2, dot, square1 = halfspace_stats(g2, g1)
        conflict = dot.clamp(max=0)
        # If a gradient is 0, there is no conflict, so the 0 / 0 is not used.
        a, b = (torch.where(conflict < 0, 1 - conflict / square, 1.0) for square in (square1, square2))
        return a, b
