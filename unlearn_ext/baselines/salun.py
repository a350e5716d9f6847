"""SalUn: train only the weights with the largest gradients on the forget set (Fan et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..models import I2IModel
from ..unlearning.encoder import Encoder
from ..unlearning.objectives import Objectives
from .method import Gradient, Method, taken

__all__ = ["SHARE", "SalUn"]

SHARE = 0.5  # fraction of trained weights; the authors use the median


class SalUn(Method):
    """The composite method for the weights with |∇f1(θ0)| ≥ the median; ∇f1 is over the whole forget set."""

    name = "salun"
    default = 0.2
    grid = (0.003, 0.01, 0.03, 0.1, 0.5)

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        super().__init__(model, objectives, value)
        forget, settings = objectives.forget, objectives.settings
        encode = Encoder(model, settings)
        for batch in forget.batches(torch.arange(len(forget)), settings.batch_size):
            (objectives.f1(encode, batch) * len(batch.images)).backward()
        gradient = taken(model.encoder_parameters())
        sizes = torch.cat([part.abs().flatten() for part in gradient])
        least = sizes.kthvalue(int((1 - SHARE) * len(sizes)) + 1).values
        self.mask = [part.abs() >= least for part in gradient]

    def combine(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Sequence[torch.Tensor]:
        """Return the composite's gradient, with 0 outside the mask."""
        return [part * kept for part, kept in zip(super().combine(loss, g1, g2), self.mask, strict=True)]
