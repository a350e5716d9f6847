"""Diffusion inpainting after Palette (Saharia et al., arXiv 2111.05826): `diffusers.UNet2DModel` and a scheduler."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from .. import draws
from ..errors import UserError, require
from ..tasks import Task
from . import Inputs
from .adopt import adopt
from .checkpoint import loading
from .from_diffusers import check_class, read_module

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

SAMPLING_STEPS = 25


class Diffusion:
    """A ``diffusers.UNet2DModel`` over a corrupted image and a noisy one, as an :class:`~unlearn_ext.models.I2IModel`.

    The U-Net takes both, concatenated, and a timestep, and predicts the noise, which is only where something is hidden.
    E is its way down: the down blocks and the middle block; its latents are all features that they make, the middle
    block's and those that the way up is given of the others. D is the way up, run by DDIM (Song et al., arXiv
    2010.02502). It is frozen, and so is what both use: the time embedding, which f2 would not see change on the way up,
    and the first convolution, to which a forgotten image looks like any other.

    Args:
        module: the U-Net; put in evaluation mode, and all but E frozen.
        scheduler: its noise schedule, predicting ``epsilon``.

    Raises:
        UserError: other classes, a U-Net that does not take two images and give one, or another prediction.
    """

    family = "diffusion"
    random = True

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
        self.module, self.scheduler = module, scheduler
        self.channels = int(module.config.out_channels)
        self.size = int(module.config.sample_size)
        adopt(self)

    @property
    def device(self) -> torch.device:
        return self.module.device

    def inputs(self, images: torch.Tensor, task: Task, draw: int = 0) -> Inputs:
        """The images; noise for each, and a timestep, int64 [N], drawn for each; and what is hidden, bool [N, 1, H, W].

        Raises:
            UserError: see :meth:`hole`.
        """
        steps = self.scheduler.config.num_train_timesteps
        drawn = list(draws.generators(images, "timestep", draw))
        timesteps = torch.stack([torch.randint(steps, (), generator=generator) for generator in drawn])
        noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in drawn])
        return images, noise.to(images), timesteps.to(images.device), self.hole(images, task)

    def hole(self, images: torch.Tensor, task: Task) -> torch.Tensor:
        """What is hidden, bool [N, 1, H, W].

        Raises:
            UserError: a task without a mask, or one that hides nothing of an image.
        """
        if not isinstance(task, Task):
            raise UserError("a model that fills in needs a task with a mask, one of unlearn_ext.tasks.")
        hole = task.mask(images).expand(len(images), -1, -1, -1)
        if not hole.flatten(1).any(1).all():
            raise UserError(f"task {task} hides nothing, and family diffusion only fills in what is hidden.")
        return hole

    def seen(
        self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, hole: torch.Tensor
    ) -> torch.Tensor:
        """What the U-Net is given, [N, 2C, H, W]: what is not hidden, and beside it the same with noise in the hole."""
        noisy = torch.where(hole, self.scheduler.add_noise(images, noise, timesteps), images)
        return torch.cat([images.masked_fill(hole, 0), noisy], 1)

    def encode(
        self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, hole: torch.Tensor
    ) -> torch.Tensor:
        """Features [N, D] of the way down, of which each weighs the same in a mean over D."""
        unet = self.module
        time = unet.time_embedding(unet.time_proj(timesteps).to(images.dtype))
        # torch 2.13 crashes in the first norm, channels last on a CPU, where what it is given asks for no gradient.
        hidden = unet.conv_in(self.seen(images, noise, timesteps, hole)).requires_grad_(torch.is_grad_enabled())
        features = []
        for block in unet.down_blocks:
            hidden, skipped = block(hidden_states=hidden, temb=time)
            features.extend(skipped)
        features.append(unet.mid_block(hidden, time))
        features = [feature.flatten(1) for feature in features]
        total = sum(feature.shape[1] for feature in features)
        return torch.cat([f * (total / (len(features) * f.shape[1])) ** 0.5 for f in features], 1)

    def decode(
        self,
        latents: torch.Tensor,
        images: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        hole: torch.Tensor,
    ) -> torch.Tensor:
        """Images [N, C, H, W], their holes filled by DDIM, from noise that comes of what is not hidden.

        A diffusion model's image comes from a walk over all timesteps; the latents, those of one, are not used.
        """
        ddim = require("diffusers", "images").DDIMScheduler.from_config(self.scheduler.config)
        ddim.set_timesteps(SAMPLING_STEPS)
        # The last timestep of a schedule may leave something of the image: the grey of the hole, then.
        corrupted = images.masked_fill(hole, 0)
        noise = draws.normal(corrupted, "sample").to(corrupted)
        image = torch.where(hole, self.scheduler.add_noise(corrupted, noise, ddim.timesteps[:1]), corrupted)
        for timestep in ddim.timesteps:
            noise = self.module(torch.cat([corrupted, image], 1), timestep).sample
            image = torch.where(hole, ddim.step(noise, timestep, image).prev_sample, corrupted)
        return image

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        parts = (self.module.down_blocks, self.module.mid_block)
        return [parameter for part in parts for parameter in part.parameters()]

    def enable_gradient_checkpointing(self) -> None:
        self.module.enable_gradient_checkpointing()

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
        with loading("scheduler beside the U-Net", path_or_id):
            return cls(module, require("diffusers", "images").DDPMScheduler.from_pretrained(path_or_id))
