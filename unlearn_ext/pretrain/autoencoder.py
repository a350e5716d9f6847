"""The small variational autoencoder: a `diffusers.AutoencoderKL`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import require
from ..models.autoencoder import AutoencoderKL
from ..tasks import Corruption
from . import recipe
from .recipe import Minibatches, convolutional, distance

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe(recipe.Recipe[AutoencoderKL]):
    """Loss: L1 + L2 between image and reconstruction, plus the KL divergence of the latents from a normal distribution.

    Attributes:
        channels: numbers of channels of the blocks, from full resolution down; each block but the first halves the
            side.
        latent_channels: number of channels of the latents.
        divergence: weight of the Kullback-Leibler divergence, in nats per latent element.
    """

    family = "autoencoder"
    channels: tuple[int, ...] = (8, 32, 64)
    latent_channels: int = 8
    divergence: float = 1e-3
    steps: int = 500

    @property
    def multiple(self) -> int:
        """The number of pixels that must divide the side of the images."""
        return 2 ** (len(self.channels) - 1)

    def build(self, channels: int, size: int) -> AutoencoderKL:
        """Return the model with random weights, for images [N, channels, size, size]."""
        autoencoder = require("diffusers", "images").AutoencoderKL
        blocks = convolutional(self.channels, channels, size)
        return AutoencoderKL(autoencoder(**blocks, latent_channels=self.latent_channels))

    def loss(self, model: AutoencoderKL, batches: Minibatches, task: Corruption, step: int) -> torch.Tensor:
        """Return the loss of one minibatch, 0-d."""
        images = next(batches)
        latents = model.module.encode(task(images)).latent_dist
        answer = model.decode(latents.sample(batches.generator))
        return distance(answer, images) + self.divergence * latents.kl().mean() / latents.mean[0].numel()
