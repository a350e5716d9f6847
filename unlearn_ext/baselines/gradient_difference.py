"""Gradient difference: descent on the retain set, ascent on the forget set (Liu, Liu and Stone, CoLLAs 2022)."""

from __future__ import annotations

import torch

from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode
from .max_loss import MaxLoss
from .method import Method

__all__ = ["GradientDifference"]


class GradientDifference(MaxLoss):
    """Objective: min f2 − w·E‖D(E(T(x_f))) − x_f‖².

    The retain loss is f2 itself, which is also the evaluation criterion; with the training loss instead, this is Max
    Loss.
    """

    name = "gradient-difference"
    default = 0.02
    grid = (0.002, 0.006, 0.02, 0.06, 0.2)

    def retain_loss(self, encode: Encode, retain: Batch) -> torch.Tensor:
        """Return f2, 0-d."""
        return Method.retain_loss(self, encode, retain)
