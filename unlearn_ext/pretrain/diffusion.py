"""The small diffusion model that fills in: a `diffusers.UNet2DModel` and its noise schedule, after Palette."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import require
from ..models.diffusion import Diffusion
from ..tasks import Corruption
from . import recipe
from .recipe import Minibatches

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """L2 in the noise that the U-Net finds in the hole, and in the image that is left without it.

    The noise alone says little about images that are nearly all noise, which is where sampling begins; for the same
    reason the schedule ends before nothing of the image is left.

    Attributes:
        channels: of the blocks, from full resolution down; each but the last halves the side. These attend on the way
            down: what is known of the whole image then reaches the features of its parts, and what shows a forgotten
            class can be told from what does not. Over more pixels it would take minutes more, and without it nothing
            that is seen is forgotten before everything is.
        beta_end: variance of the noise that the last of a thousand timesteps adds; the first adds 1e-4.
    """

    family = "diffusion"
    size = 16
    channels: tuple[int, ...] = (16, 32, 64)
    beta_end: float = 0.008
    steps: int = 1500
    batch_size: int = 32
    lr: float = 5e-3

    def build(self, channels: int, size: int) -> Diffusion:
        diffusers = require("diffusers", "images")
        blocks = len(self.channels)
        module = diffusers.UNet2DModel(
            sample_size=size,
            in_channels=2 * channels,
            out_channels=channels,
            down_block_types=["AttnDownBlock2D"] * (blocks - 1) + ["DownBlock2D"],
            up_block_types=("UpBlock2D",) * blocks,
            block_out_channels=self.channels,
            layers_per_block=1,
            norm_num_groups=4,
        )
        return Diffusion(module, diffusers.DDPMScheduler(beta_end=self.beta_end))

    def loss(self, model: Diffusion, batches: Minibatches, task: Corruption, step: int) -> torch.Tensor:
        images, generator = next(batches), batches.generator
        timesteps = torch.randint(model.scheduler.config.num_train_timesteps, (len(images),), generator=generator)
        noise = torch.randn(images.shape, generator=generator).to(images)
        hole = model.hole(images, task)
        kept = model.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(images)
        timesteps = timesteps.to(images.device)
        error = model.module(model.seen(images, noise, timesteps, hole), timesteps).sample - noise
        # An error e in the noise is √(1/kept − 1)·e in the image.
        return (error.square() / kept)[hole.expand_as(error)].mean()
