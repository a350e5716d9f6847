"""The small VQ-GAN: a `diffusers.VQModel`, trained without a discriminator, which small images do not need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import require
from ..models.vqgan import VQGAN
from ..tasks import Corruption
from . import recipe
from .recipe import Minibatches, convolutional, distance

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe(recipe.Recipe[VQGAN]):
    """Loss: L1 + L2 between image and reconstruction, plus the codebook loss (van den Oord et al., 2017).

    The first steps do not quantise; then the codebook is filled with randomly selected latents. With its default
    initialization, which is tiny, most of the codebook would never be used.

    Attributes:
        channels: numbers of channels of the blocks, from full resolution down; each block but the first halves the
            side.
        latent_channels: number of channels of the latents, and size of the codebook's vectors.
        codes: number of vectors in the codebook.
        continuous: fraction of the steps before quantisation begins.
    """

    family = "vqgan"
    channels: tuple[int, ...] = (8, 32, 64)
    latent_channels: int = 8
    codes: int = 256
    continuous: float = 0.3

    @property
    def multiple(self) -> int:
        """The number of pixels that must divide the side of the images."""
        return 2 ** (len(self.channels) - 1)

    def build(self, channels: int, size: int) -> VQGAN:
        """Return the model with random weights, for images [N, channels, size, size]."""
        vqmodel = require("diffusers", "images").VQModel
        blocks = convolutional(self.channels, channels, size)
        return VQGAN(vqmodel(**blocks, latent_channels=self.latent_channels, num_vq_embeddings=self.codes))

    def loss(self, model: VQGAN, batches: Minibatches, task: Corruption, step: int) -> torch.Tensor:
        """Return the loss of one minibatch, 0-d; at the first quantised step, fill the codebook."""
        quantised_from = round(self.continuous * self.steps)
        if step == quantised_from:
            _fill_codebook(model, task(next(batches)), batches.generator)
        images = next(batches)
        latents = model.encode(task(images))
        output = model.module.decode(latents, force_not_quantize=step < quantised_from)
        return distance(output.sample, images) + output.commit_loss.mean()


@torch.no_grad()
def _fill_codebook(model: VQGAN, corrupted: torch.Tensor, generator: torch.Generator) -> None:
    latents = model.encode(corrupted).permute(0, 2, 3, 1).flatten(0, 2)
    chosen = torch.randperm(len(latents), generator=generator)[: model.module.config.num_vq_embeddings]
    model.module.quantize.embedding.weight[: len(chosen)] = latents[chosen]
