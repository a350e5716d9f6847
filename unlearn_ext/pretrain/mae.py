"""The small masked autoencoder: a `transformers.ViTMAEForPreTraining`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import require
from ..models.mae import MAE
from ..tasks import Corruption
from . import recipe
from .recipe import Minibatches, distance

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe(recipe.Recipe[MAE]):
    """Loss: L1 + L2 over the patches that the task hides.

    Attributes:
        patch: side of a patch in pixels.
        width: size of the encoder's tokens; the decoder's have half the size.
        depth: number of layers of the encoder; the decoder has half as many.
    """

    family = "mae"
    patch: int = 8
    width: int = 128
    depth: int = 4
    steps: int = 2400
    lr: float = 2e-3

    @property
    def multiple(self) -> int:
        """The number of pixels that must divide the side of the images."""
        return self.patch

    def build(self, channels: int, size: int) -> MAE:
        """Return the model with random weights, for images [N, channels, size, size]."""
        transformers = require("transformers", "images")
        config = transformers.ViTMAEConfig(
            image_size=size,
            patch_size=self.patch,
            initializer_range=self.width**-0.5,
            num_channels=channels,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=4,
            decoder_hidden_size=self.width // 2,
            decoder_intermediate_size=2 * self.width,
            decoder_num_hidden_layers=self.depth // 2,
            decoder_num_attention_heads=4,
        )
        return MAE(transformers.ViTMAEForPreTraining(config))

    def loss(self, model: MAE, batches: Minibatches, task: Corruption, step: int) -> torch.Tensor:
        """Return the loss of one minibatch, 0-d."""
        images, visible = model.inputs(next(batches), task)
        return distance(model.decode(model.encode(images, visible), images, visible), images)
