"""Diffusion inpainting after Palette (Saharia et al., arXiv 2111.05826): `diffusers.UNet2DModel` and a scheduler."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from .._utils import draws
from ..errors import UserError
from ..tasks import Task
from .freezing import adopt, unwrapped
from .from_diffusers import check_class, check_sides, read_module, sample_side
from .noise_schedule import noise_schedule, read_scheduler, sampler
from .protocol import Inputs
from .sides import read_sides

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel

__all__ = ["SAMPLING_STEPS", "Diffusion"]

SAMPLING_STEPS = 25


class Diffusion:
    """A ``diffusers.UNet2DModel`` over a corrupted image and a noisy one, as an :class:`~unlearn_ext.models.I2IModel`.

    The U-Net takes both, concatenated, and a timestep, and predicts the noise, which is only where something is hidden,
    or what its scheduler says it predicts in its place.
    E is the down blocks and the middle block, if there is one; its latents are all features that the up blocks are
    given of them. D is the up blocks, run by DDIM (Song et al., arXiv 2010.02502). It is frozen, and so is what both
    use: the time embedding, whose change f2 would not see in the up blocks, and the first convolution, to which a
    forgotten image looks like any other.

    Args:
        module: the U-Net; wrappers such as ``torch.compile``'s are taken off; put in evaluation mode, and all but E
            frozen.
        scheduler: any that has DDPM's noise schedule; says what the U-Net predicts, and is saved beside it as it is.

    Attributes:
        noise_schedule: a ``DDPMScheduler`` with the scheduler's betas.

    Raises:
        UserError: other classes; a U-Net that does not take two images and give one, with a variance where the
            scheduler has a learned one, or that needs more than images and timesteps of the scheduler; or a schedule
            that is not DDPM's.
    """

    family = "diffusion"
    random = True

    def __init__(self, module: UNet2DModel, scheduler: SchedulerMixin) -> None:
        module = unwrapped(module)
        check_class(module, self.family, "UNet2DModel")
        self.noise_schedule = noise_schedule(scheduler)
        _check_unet(module, len(self.noise_schedule.betas))
        self.module, self.scheduler = module, scheduler
        self.channels = _image_channels(module, scheduler)
        self._ddim, self._timesteps = sampler(scheduler, self.noise_schedule, SAMPLING_STEPS)
        adopt(self)

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model was made for; in Python it takes other sizes as well.

        Raises:
            UserError: its configuration gives no size, no square, or one that the model does not give back.
        """
        return sample_side(self.module)

    @property
    def device(self) -> torch.device:
        return self.module.device

    def inputs(self, images: torch.Tensor, task: Task, draw: int = 0) -> Inputs:
        """Return the images; noise and a timestep, int64 [N], drawn for each; and what is hidden, bool [N, 1, H, W].

        Raises:
            UserError: the U-Net cannot halve the images' sides often enough; see also :meth:`hole`.
        """
        check_sides(images.shape[-2:], self.module)
        steps = len(self.noise_schedule.betas)
        drawn = list(draws.generators(images, "timestep", draw))
        timesteps = torch.stack([torch.randint(steps, (), generator=generator) for generator in drawn])
        noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in drawn])
        return images, noise.to(images), timesteps.to(images.device), self.hole(images, task)

    def hole(self, images: torch.Tensor, task: Task) -> torch.Tensor:
        """Return what is hidden, bool [N, 1, H, W].

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
        """Return the U-Net's input [N, 2C, H, W]: what is not hidden, and beside it the same with noise in the hole."""
        noisy = torch.where(hole, self.noise_schedule.add_noise(images, noise, timesteps), images)
        return torch.cat([images.masked_fill(hole, 0), noisy], 1)

    def encode(
        self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, hole: torch.Tensor
    ) -> torch.Tensor:
        """Return the features [N, D] of the down and middle blocks, each with the same weight in a mean over D.

        ``UNet2DModel.forward`` computes the same features and does not return them.
        """
        unet, seen = self.module, self.seen(images, noise, timesteps, hole)
        time = unet.time_embedding(unet.time_proj(timesteps).to(images.dtype))
        if unet.config.center_input_sample:
            seen = 2 * seen - 1
        # torch 2.13 crashes in the first norm, channels last on a CPU, where what it is given asks for no gradient.
        hidden = unet.conv_in(seen).requires_grad_(torch.is_grad_enabled())
        features = []
        for block in unet.down_blocks:
            hidden, skipped = block(hidden_states=hidden, temb=time)
            features.extend(skipped)
        if unet.mid_block is not None:
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
        """Return images [N, C, H, W] whose holes DDIM has filled, from noise drawn from what is not hidden.

        Sampling runs over many timesteps; the latents are those of one of them, and are not used.
        """
        # The last timestep of a schedule may leave something of the image: the grey of the hole, then.
        corrupted = images.masked_fill(hole, 0)
        noise = draws.normal(corrupted, "sample").to(corrupted)
        image = torch.where(hole, self.noise_schedule.add_noise(corrupted, noise, self._timesteps[-1:]), corrupted)
        for step in self._ddim.timesteps:
            predicted = self.module(torch.cat([corrupted, image], 1), self._timesteps[step]).sample
            # A learned variance follows the prediction; DDIM has no use for it.
            before = self._ddim.step(predicted[:, : self.channels], step, image).prev_sample
            image = torch.where(hole, before, corrupted)
        return image

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        parts = [part for part in (self.module.down_blocks, self.module.mid_block) if part is not None]
        return [parameter for part in parts for parameter in part.parameters()]

    def enable_gradient_checkpointing(self) -> None:
        self.module.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the U-Net, as safetensors, and the scheduler's configuration beside it."""
        self.module.save_pretrained(folder, safe_serialization=True)
        self.scheduler.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> Diffusion:
        """Load both from a folder or hub id; safetensors only, since a pickle runs code.

        Raises:
            UserError: nothing there, a checkpoint of another class, no scheduler beside it, a U-Net or a scheduler of
                another kind, or a missing extra.
        """
        module = read_module(path_or_id, cls.family, "UNet2DModel")
        return cls(module, read_scheduler(path_or_id))


def _image_channels(module: UNet2DModel, scheduler: SchedulerMixin) -> int:
    """Return the channels of one image.

    Raises:
        UserError: the U-Net does not take two images and give one, or one and its variance.
    """
    taken, given = module.config.in_channels, module.config.out_channels
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    if learned and taken != given:
        raise UserError(
            f"the scheduler says that half of the {given} channels out are a learned variance (variance_type): then as "
            f"many must go in, the corrupted image's and the noisy one's, not {taken}."
        )
    if not learned and taken != 2 * given:
        raise UserError(
            "family diffusion takes the corrupted image and the noisy one, concatenated: a U-Net with "
            f"{given} channels out needs twice as many in, not {taken}, unless its scheduler has a learned variance."
        )
    return taken // 2


def _check_unet(module: UNet2DModel, timesteps: int) -> None:
    """Check that a U-Net needs images and timesteps alone.

    Args:
        module: any.
        timesteps: how many the scheduler has.

    Raises:
        UserError: it needs more or other things, or its ``sample_size`` is no size.
    """
    config = module.config
    read_sides("sample_size", config.sample_size)
    if module.class_embedding is not None:
        raise UserError(
            "the U-Net is conditioned on classes (num_class_embeds or class_embed_type), and images to forget and to "
            "retain have no labels that it could be given: use a U-Net without class embedding."
        )
    if config.time_embedding_type == "fourier":
        raise UserError(
            "the U-Net takes the logarithm of a noise level (time_embedding_type fourier), as score SDEs have it, and "
            "DDPM's first timestep is 0: use a U-Net with positional or learned time embeddings."
        )
    if config.time_embedding_type == "learned" and module.time_proj.num_embeddings < timesteps:
        raise UserError(
            f"the U-Net has learned embeddings of {module.time_proj.num_embeddings} timesteps and its scheduler has "
            f"{timesteps}: correct num_train_timesteps in scheduler_config.json."
        )
    if any(hasattr(block, "skip_conv") for block in module.down_blocks):
        raise UserError(
            "the U-Net has skip blocks (NCSN++), which take one image of 3 channels, and family diffusion gives it two "
            "images: use a U-Net of other blocks."
        )
