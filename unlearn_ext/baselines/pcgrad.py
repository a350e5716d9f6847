"""Gradient surgery: PCGrad (Yu et al., NeurIPS 2020)."""

from __future__ import annotations

import torch

from ..ops import halfspace_stats
from .method import Gradient, Method, Weights

__all__ = ["PCGrad"]


class PCGrad(Method):
    """Where ∇f1 and ∇f2 conflict, each loses its component along the other; then they are added.

    g = ∇f1 − min(c, 0)/‖∇f2‖²·∇f2 + ∇f2 − min(c, 0)/‖∇f1‖²·∇f1 with c = ⟨∇f1, ∇f2⟩.
    """

    name = "pcgrad"
    knob = None

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        dot, square1, square2 = halfspace_stats(g2, g1)
        conflict = dot.clamp(max=0)
        # Where a gradient is 0 they do not conflict, and 0 / 0 is not asked for.
        return tuple(torch.where(conflict < 0, 1 - conflict / square, 1.0) for square in (square1, square2))
