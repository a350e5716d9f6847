"""Gradient difference: down the retain set's gradient, up the forget set's (Liu, Liu and Stone, CoLLAs 2022)."""

from __future__ import annotations

import torch

from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode
from .max_loss import MaxLoss
from .method import Method

__all__ = ["GradientDifference"]


class GradientDifference(MaxLoss):
    """min f2 − w·E‖D(E(T(x_f))) − x_f‖².

    On the retain set it is given f2 itself, by which it will be judged; with the training loss there it is Max Loss.
    """

    name = "gradient-difference"
    default = 0.02
    grid = (0.002, 0.006, 0.02, 0.06, 0.2)

    def retain_loss(self, encode: Encode, retain: Batch) -> torch.Tensor:
        return Method.retain_loss(self, encode, retain)
