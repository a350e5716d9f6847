"""Noisy Label: train the model to complete forget images with noise (Li et al., ICLR 2024)."""

from __future__ import annotations

import torch

from ..models import I2IModel
from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode, Objectives
from .reconstruction import Reconstruction

__all__ = ["NoisyLabel"]


class NoisyLabel(Reconstruction):
    """Objective: min E‖D(E(T(x_r))) − x_r‖² + w·E‖D(E(T(x_f))) − n‖², with new standard normal n in every step."""

    name = "noisy-label"
    default = 1.0
    grid = (0.01, 0.03, 0.1, 0.3, 1.0)

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        self._generator = torch.Generator().manual_seed(objectives.settings.seed)

    def forget_loss(self, encode: Encode, forget: Batch, retain: Batch) -> torch.Tensor:
        """Return E‖D(E(T(x_f))) − n‖², 0-d."""
        return self.distance(encode, forget, torch.randn(forget.images.shape, generator=self._generator))
