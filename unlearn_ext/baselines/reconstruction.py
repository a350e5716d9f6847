"""What methods that look at pictures share: D runs too, frozen, and gradients pass through it."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..models import I2IModel
from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode, Objectives
from .method import Method

__all__ = ["Reconstruction"]


class Reconstruction(Method):
    """The retain loss is that of training, E‖D(E(T(x_r))) − x_r‖².

    Raises:
        UserError: the model makes a picture by drawing from it step by step, so no latents of one step have one.
    """

    needs_pictures = True

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        if model.random:
            raise UserError(
                f"{self.name} compares what D makes of latents; family {model.family} samples its pictures step by "
                "step, so the method is not defined for it."
            )
        super().__init__(model, objectives, value)

    def distance(self, encode: Encode, batch: Batch, pictures: torch.Tensor) -> torch.Tensor:
        """E‖D(E(T(x))) − picture‖², 0-d, of a minibatch and pictures [B, C, H, W]."""
        made = self.model.decode(encode(*batch.inputs), *batch.inputs)
        return (made - pictures.to(made.device)).square().mean()

    def retain_loss(self, encode: Encode, retain: Batch) -> torch.Tensor:
        return self.distance(encode, retain, retain.images)
