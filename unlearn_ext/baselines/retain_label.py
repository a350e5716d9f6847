"""Retain Label: train the model to complete forget images to retain images (Li et al., ICLR 2024)."""

from __future__ import annotations

import torch

from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode
from .reconstruction import Reconstruction

__all__ = ["RetainLabel"]


class RetainLabel(Reconstruction):
    """Objective: min E‖D(E(T(x_r))) − x_r‖² + w·E‖D(E(T(x_f))) − x_r‖²; pairs (x_f, x_r) are from the same step."""

    name = "retain-label"
    default = 1.0
    grid = (0.01, 0.03, 0.1, 0.3, 1.0)

    def forget_loss(self, encode: Encode, forget: Batch, retain: Batch) -> torch.Tensor:
        """Return E‖D(E(T(x_f))) − x_r‖², 0-d."""
        beside = torch.arange(len(forget.images)) % len(retain.images)
        return self.distance(encode, forget, retain.images[beside])
