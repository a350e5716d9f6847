"""Max Loss: maximise the training loss on the forget set (Li et al., ICLR 2024)."""

from __future__ import annotations

import torch

from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode
from .reconstruction import Reconstruction

__all__ = ["MaxLoss"]


class MaxLoss(Reconstruction):
    """Objective: min E‖D(E(T(x_r))) − x_r‖² − w·E‖D(E(T(x_f))) − x_f‖²; it has no lower bound."""

    name = "max-loss"
    default = 1.0
    grid = (0.01, 0.03, 0.1, 0.3, 1.0)

    def forget_loss(self, encode: Encode, forget: Batch, retain: Batch) -> torch.Tensor:
        """Return the negative reconstruction loss, 0-d."""
        return -self.distance(encode, forget, forget.images)
