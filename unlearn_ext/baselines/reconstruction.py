"""Base class of methods that compare images: gradients pass through the frozen decoder D."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..models import I2IModel
from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode, Objectives
from .method import Method

__all__ = ["Reconstruction"]


class Reconstruction(Method):
    """A method whose retain loss is the training loss, E‖D(E(T(x_r))) − x_r‖².

    Raises:
        UserError: the model samples images over many steps, so D cannot decode the latents of one step.
    """

    needs_pictures = True

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        if model.random:
            raise UserError(
                f"{self.name} compares images that D decodes from latents, but family {model.family} samples images "
                "over many steps, so the method is not defined for it: choose another method."
            )
        super().__init__(model, objectives, value)

    def distance(self, encode: Encode, batch: Batch, pictures: torch.Tensor) -> torch.Tensor:
        """Return E‖D(E(T(x))) − picture‖², 0-d, for a minibatch and pictures [B, C, H, W]."""
        made = self.model.decode(encode(*batch.inputs), *batch.inputs)
        return (made - pictures.to(made.device)).square().mean()

    def retain_loss(self, encode: Encode, retain: Batch) -> torch.Tensor:
        """Return the reconstruction loss, 0-d."""
        return self.distance(encode, retain, retain.images)
