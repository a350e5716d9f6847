"""Diffusion inpainting after Palette (Saharia et al., arXiv 2111.05826): `diffusers.UNet2DModel` and a scheduler."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..errors import UserError, require
from .channels import check_channels
from .from_diffusers import check_class, read_module

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

SAMPLING_STEPS = 25


class Diffusion:
    """A ``diffusers.UNet2DModel`` over a corrupted image and a noisy one, as an :class:`~unlearn_ext.models.I2IModel`.

    The U-Net takes both, concatenated, and a timestep, and predicts the noise. E is its way down: the first
    convolution, the time embedding, the down blocks and the middle block; its latents are what all of those blocks put
    out. D is the way up, run by DDIM (Song et al., arXiv 2010.02502) from noise; it is frozen.

    Args:
        module: the U-Net; put in evaluation mode, and all but E frozen.
        scheduler: its noise schedule, predicting ``epsilon``.

    Raises:
        UserError: other classes, a U-Net that does not take two images and give one, or another prediction.
    """

    family = "diffusion"

    def __init__(self, module: UNet2DModel, scheduler: DDPMScheduler) -> None:
        check_class(module, self.family, "UNet2DModel")
        if module.config.in_channels != 2 * module.config.out_channels:
            raise UserError(
                f"family diffusion takes the corrupted image and the noisy one, concatenated: a U-Net with "
                f"{module.config.out_channels} channels out needs twice as many in, not {module.config.in_channels}."
            )
        if scheduler.config.prediction_type != "epsilon":
            raise UserError(
                f"the model predicts {scheduler.config.prediction_type}; only epsilon, the noise, is known."
            )
        self.module = module.eval().requires_grad_(False)
        self.scheduler = scheduler
        self.channels = int(module.config.out_channels)
        self.size = int(module.config.sample_size)
        check_channels(self.channels)
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        return self.module.device

    def inputs(
        self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The corrupted images, the images with noise on them, and how much: a timestep each, int64 [N].

        Timestep and noise of an image are drawn once, so that the frozen latents are constant; over the set, all
        timesteps are met.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(images.shape, generator=generator).to(images)
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (len(images),), generator=generator)
        timesteps = timesteps.to(images.device)
        return task(images), self.scheduler.add_noise(images, noise, timesteps), timesteps

    def encode(self, corrupted: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Features [N, D] of all down blocks and the middle block; each block weighs the same in a mean over D."""
        unet = self.module
        time = unet.time_embedding(unet.time_proj(timesteps).to(noisy.dtype))
        hidden = unet.conv_in(torch.cat([corrupted, noisy], 1))
        features = []
        for block in unet.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=time)
            features.append(hidden.flatten(1))
        features.append(unet.mid_block(hidden, time).flatten(1))
        total = sum(feature.shape[1] for feature in features)
        return torch.cat([f * (total / (len(features) * f.shape[1])) ** 0.5 for f in features], 1)

    def decode(self, latents: torch.Tensor, corrupted: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] sampled for the corrupted ones, by DDIM from the same noise every time.

        A diffusion model's image comes from a walk over all timesteps; the latents, those of one, are not used. The
        walk starts as the training's last timesteps look: with what the schedule leaves of the image, as far as it is
        known. A U-Net normalises its features and hardly sees the mean and the spread of a small image's noise; the
        first noise has neither, or they would stay in the picture as a veil.
        """
        ddim = require("diffusers", "images").DDIMScheduler.from_config(self.scheduler.config)
        ddim.set_timesteps(SAMPLING_STEPS)
        generator = torch.Generator().manual_seed(0)
        noise = F.layer_norm(torch.randn(corrupted.shape, generator=generator), corrupted.shape[1:]).to(corrupted)
        image = self.scheduler.add_noise(corrupted, noise, ddim.timesteps[:1])
        for timestep in ddim.timesteps:
            noise = self.module(torch.cat([corrupted, image], 1), timestep).sample
            image = ddim.step(noise, timestep, image).prev_sample
        return image

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        unet = self.module
        parts = (unet.conv_in, unet.time_embedding, unet.down_blocks, unet.mid_block)
        return [parameter for part in parts for parameter in part.parameters()]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the U-Net, as safetensors, and the scheduler's configuration beside it."""
        self.module.save_pretrained(folder, safe_serialization=True)
        self.scheduler.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> Diffusion:
        """From a folder or hub id that holds both; safetensors only, since a pickle runs code.

        Raises:
            UserError: nothing there, a checkpoint of another class, no scheduler beside it, or a missing extra.
        """
        module = read_module(path_or_id, cls.family, "UNet2DModel")
        try:
            scheduler = require("diffusers", "images").DDPMScheduler.from_pretrained(path_or_id)
        except OSError as error:
            raise UserError(
                f"there is no scheduler beside the U-Net in {path_or_id}: {str(error).splitlines()[0]}"
            ) from error
        return cls(module, scheduler)
