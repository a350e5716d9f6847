"""The small diffusion inpainting model, after Palette: a `diffusers.UNet2DModel` and its noise schedule."""

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
class Recipe(recipe.Recipe[Diffusion]):
    """Loss: L2 in the predicted noise in the hole, plus L2 in the image that results from it.

    Sampling begins with images that are almost pure noise, for which the error in the noise says little about the
    image. For the same reason, the last timestep does not remove the image entirely.

    Attributes:
        channels: numbers of channels of the blocks, from full resolution down; each block but the last halves the side.
            These down blocks have attention, so that local features depend on the whole image and the encoder can
            distinguish images of a forgotten class from others. Without attention, it cannot forget one without
            forgetting all. Attention over more pixels would take minutes longer.
        beta_end: variance of the noise that the last of 1000 timesteps adds; the first adds 1e-4.
    """

    family = "diffusion"
    size = 16
    channels: tuple[int, ...] = (16, 32, 64)
    beta_end: float = 0.008
    steps: int = 1500
    batch_size: int = 32
    lr: float = 5e-3

    @property
    def multiple(self) -> int:
        """The number of pixels that must divide the side of the images."""
        return 2 ** (len(self.channels) - 1)

    def build(self, channels: int, size: int) -> Diffusion:
        """Return the model with random weights, for images [N, channels, size, size]."""
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
        """Return the loss of one minibatch, 0-d."""
        images, generator = next(batches), batches.generator
        timesteps = torch.randint(model.scheduler.config.num_train_timesteps, (len(images),), generator=generator)
        noise = torch.randn(images.shape, generator=generator).to(images)
        hole = model.hole(images, task)
        kept = model.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(images)
        timesteps = timesteps.to(images.device)
        error = model.module(model.seen(images, noise, timesteps, hole), timesteps).sample - noise
        # An error e in the noise is √(1/kept − 1)·e in the image; the sum of both squares is e²/kept.
        return (error.square() / kept)[hole.expand_as(error)].mean()
