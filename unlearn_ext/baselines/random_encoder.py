"""Random Encoder: train the latents of forget images towards random numbers (Li et al., ICLR 2024)."""

from __future__ import annotations

import torch

from ..models import I2IModel
from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode, Objectives
from .method import Method

__all__ = ["RandomEncoder"]


class RandomEncoder(Method):
    """Objective: min f2 + w·E‖E(T(x_f)) − n‖²/s², with new normal n in every step.

    The mean and standard deviation of n are those of all elements of the frozen encoder's latents of all forget images.
    s² is the variance in f1 and f2.
    """

    name = "random-encoder"
    default = 1.0
    grid = (0.003, 0.01, 0.03, 0.1, 0.5)

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        whole = objectives.forget.batches(torch.arange(len(objectives.forget)), objectives.settings.batch_size)
        with torch.no_grad():
            latents = torch.cat([objectives.frozen(*batch.inputs).flatten() for batch in whole])
        self._mean, self._std = latents.mean(), latents.std()
        self._generator = torch.Generator().manual_seed(objectives.settings.seed)

    def forget_loss(self, encode: Encode, forget: Batch, retain: Batch) -> torch.Tensor:
        """Return E‖E(T(x_f)) − n‖²/s², 0-d."""
        latents = encode(*forget.inputs)
        noise = torch.randn(latents.shape, generator=self._generator).to(latents.device)
        return (latents - (self._mean + self._std * noise)).square().mean() / self.objectives.variance
