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
class Recipe(recipe.Recipe):
    """L1 + L2 between image and reconstruction plus the divergence of the latents from a normal distribution.

    Attributes:
        channels: of the blocks, from full resolution down; each but the first halves the side.
        latent_channels: of the latents.
        divergence: weight of the Kullback-Leibler divergence, in nats a latent element.
    """

    family = "autoencoder"
    channels: tuple[int, ...] = (8, 32, 64)
    latent_channels: int = 8
    divergence: float = 1e-3
    steps: int = 500

    def build(self, channels: int, size: int) -> AutoencoderKL:
        autoencoder = require("diffusers", "images").AutoencoderKL
        blocks = convolutional(self.channels, channels, size)
        return AutoencoderKL(autoencoder(**blocks, latent_channels=self.latent_channels))

    def loss(self, model: AutoencoderKL, batches: Minibatches, task: Corruption, step: int) -> torch.Tensor:
        images = next(batches)
        latents = model.module.encode(task(images)).latent_dist
        answer = model.decode(latents.sample(batches.generator))
        return distance(answer, images) + self.divergence * latents.kl().mean() / latents.mean[0].numel()
