"""Diffusion inpainting after Palette (Saharia et al., arXiv 2111.05826): `diffusers.UNet2DModel` and a scheduler."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from .._utils import draws
from ..errors import UserError
from ..tasks import Corruption
from .freezing import adopt, unwrapped
from .from_diffusers import check_class, check_sides, read_module, sample_side
from .holes import hidden
from .noise_schedule import noise_schedule, read_scheduler, sampler
from .protocol import Inputs
from .sides import read_sides
from .unet_encoder import joined, parameters_of_encoder

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel

__all__ = ["PALETTE", "SAMPLING_STEPS", "Diffusion"]

SAMPLING_STEPS = 25
PALETTE = "_palette"  # entry of a U-Net's configuration; diffusers keeps entries that begin with _, and ignores them


class Diffusion:
    """A ``diffusers.UNet2DModel`` that fills in the hidden pixels, as an :class:`~unlearn_ext.models.I2IModel`.

    The U-Net takes a corrupted image and a noisy one, concatenated, and a timestep. The noise is only in the hole (the
    hidden pixels). The U-Net predicts the noise, or what the scheduler's ``prediction_type`` says.
    E is the down blocks and the middle block, if there is one; its latents are all features that the up blocks get
    from them. D is the up blocks, run by DDIM (Song et al., arXiv 2010.02502). D is frozen, and so are two parts that
    E and D share: the time embedding, because f2 does not measure how its changes affect the up blocks, and the first
    convolution, because it does not distinguish forgotten images from others.

    U-Nets of Palette's published code have ``"_palette": true`` in their configuration: in place of the timestep they
    take ᾱ, the share of the image's variance that is left; and in the image to complete, the hole is noise, not 0.

    Args:
        module: the U-Net; wrappers such as ``torch.compile``'s are removed, evaluation mode is set, and everything
            except E is frozen.
        scheduler: any scheduler with DDPM's noise schedule; it defines what the U-Net predicts, and is saved unchanged
            beside it.

    Attributes:
        noise_schedule: a ``DDPMScheduler`` with the scheduler's betas.
        palette: whether the U-Net takes ᾱ and a hole of noise.

    Raises:
        UserError: the U-Net or the scheduler is of another class; the U-Net does not take two images and return one
            (and a variance if the scheduler has a learned one), or needs more than images and the scheduler's
            timesteps (or ᾱ); or the noise schedule is not DDPM's.
    """

    family = "diffusion"
    random = True

    def __init__(self, module: UNet2DModel, scheduler: SchedulerMixin) -> None:
        # Any: type checkers see the classes of diffusers as placeholders without attributes.
        self.module: Any = unwrapped(module)
        self.scheduler: Any = scheduler
        check_class(self.module, self.family, "UNet2DModel")
        self.noise_schedule = noise_schedule(scheduler)
        _check_unet(self.module, len(self.noise_schedule.betas))
        self.channels = _image_channels(self.module, scheduler)
        self.palette = bool(self.module.config.get(PALETTE, False))
        self._ddim, self._timesteps = sampler(scheduler, self.noise_schedule, SAMPLING_STEPS)
        adopt(self)

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model was made for; in Python it takes other sizes as well.

        Raises:
            UserError: the configuration gives no size, a size that is not square, or one that the output cannot have.
        """
        return sample_side(self.module)

    @property
    def device(self) -> torch.device:
        """The device of the U-Net."""
        return self.module.device

    def inputs(self, images: torch.Tensor, task: Corruption, draw: int = 0) -> Inputs:
        """Return the images, random noise and timesteps, and the mask of the hidden pixels.

        Returns:
            float [N, C, H, W] twice, int64 [N] and bool [N, 1, H, W]. With ``palette``, the noise is [N, 2C, H, W]: for
            the noisy image, and for the hole of the other.

        Raises:
            UserError: the sides of the images cannot be halved as often as the U-Net needs; see also :meth:`hole`.
        """
        check_sides(images.shape[-2:], self.module)
        steps = len(self.noise_schedule.betas)
        drawn = list(draws.generators(images, "timestep", draw))
        timesteps = torch.stack([torch.randint(steps, (), generator=generator) for generator in drawn])
        shape = (images.shape[1] * (2 if self.palette else 1), *images.shape[2:])
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in drawn])
        return images, noise.to(images), timesteps.to(images.device), self.hole(images, task)

    def hole(self, images: torch.Tensor, task: Corruption) -> torch.Tensor:
        """Return the mask of the hidden pixels, bool [N, 1, H, W].

        Raises:
            UserError: the task has no mask, or it hides no pixel of an image.
        """
        return hidden(images, task, self.family)

    def seen(
        self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, hole: torch.Tensor
    ) -> torch.Tensor:
        """Return the U-Net's input [N, 2C, H, W]: images without the hole, and images with noise added in the hole.

        In the first, the hole is 0, or with ``palette`` nothing but noise.
        """
        added, fill = noise[:, : self.channels], noise[:, self.channels :]
        noisy = torch.where(hole, self.noise_schedule.add_noise(images, added, timesteps), images)
        corrupted = torch.where(hole, fill, images) if self.palette else images.masked_fill(hole, 0)
        return torch.cat([corrupted, noisy], 1)

    def level(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return what the U-Net takes besides images: timesteps of any shape as they are, or their ᾱ (``palette``)."""
        if not self.palette:
            return timesteps
        return self.noise_schedule.alphas_cumprod.to(timesteps.device)[timesteps]

    def encode(
        self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, hole: torch.Tensor
    ) -> torch.Tensor:
        """Return the features [N, D] of the down and middle blocks, scaled to have equal weights in a mean over D.

        ``UNet2DModel.forward`` computes the same features, but does not return them.
        """
        unet, seen = self.module, self.seen(images, noise, timesteps, hole)
        time = unet.time_embedding(unet.time_proj(self.level(timesteps)).to(images.dtype))
        if unet.config.center_input_sample:
            seen = 2 * seen - 1
        # On a CPU in channels-last format, torch 2.13 crashes in the first norm if its input requires no gradient.
        hidden = unet.conv_in(seen).requires_grad_(torch.is_grad_enabled())
        features = []
        for block in unet.down_blocks:
            hidden, skipped = block(hidden_states=hidden, temb=time)
            features.extend(skipped)
        if unet.mid_block is not None:
            features.append(unet.mid_block(hidden, time))
        return joined(features)

    def decode(
        self,
        latents: torch.Tensor,
        images: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        hole: torch.Tensor,
    ) -> torch.Tensor:
        """Return images [N, C, H, W] with holes filled by DDIM, from noise that is seeded by the visible pixels.

        The latents are not used: they belong to one timestep, and sampling runs over many.
        """
        # The last timestep may not remove the image entirely, so sampling starts from the grey hole with noise.
        corrupted = images.masked_fill(hole, 0)
        noise = draws.normal(corrupted, "sample").to(corrupted)
        image = torch.where(hole, self.noise_schedule.add_noise(corrupted, noise, self._timesteps[-1:]), corrupted)
        if self.palette:
            corrupted = torch.where(hole, draws.normal(corrupted, "hole").to(corrupted), corrupted)
        for step in self._ddim.timesteps:
            level = self.level(self._timesteps[step])
            predicted = self.module(torch.cat([corrupted, image], 1), level).sample
            # DDIM does not use a learned variance, which is in the channels after the prediction.
            before = self._ddim.step(predicted[:, : self.channels], step, image).prev_sample
            image = torch.where(hole, before, corrupted)
        return image

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the down blocks and the middle block."""
        return parameters_of_encoder(self.module)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes: less memory, about a third more time."""
        self.module.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the U-Net as safetensors, and the scheduler's configuration beside it."""
        self.module.save_pretrained(folder, safe_serialization=True)
        self.scheduler.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> Diffusion:
        """Load both from a folder or a hub id; only safetensors files, because a pickle can run code.

        Raises:
            UserError: the checkpoint does not exist, is of another class or has no scheduler; the U-Net or the
                scheduler is not supported; or an extra is missing.
        """
        module = read_module(path_or_id, cls.family, "UNet2DModel")
        return cls(module, read_scheduler(path_or_id))


def _image_channels(module: Any, scheduler: Any) -> int:
    """Return the number of channels of one image.

    Raises:
        UserError: the U-Net does not take two images and return one, or one and its variance.
    """
    taken, given = module.config.in_channels, module.config.out_channels
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    if learned and taken != given:
        raise UserError(
            f"the scheduler has a learned variance (variance_type), which is half of the U-Net's {given} output "
            f"channels: it then needs {given} input channels, for the corrupted and the noisy image, not {taken}."
        )
    if not learned and taken != 2 * given:
        raise UserError(
            f"family diffusion concatenates the corrupted and the noisy image: a U-Net with {given} output channels "
            f"needs {2 * given} input channels, not {taken}, unless its scheduler has a learned variance."
        )
    return taken // 2


def _check_unet(module: Any, timesteps: int) -> None:
    """Check that a U-Net needs only images and timesteps.

    Args:
        module: the U-Net.
        timesteps: number of timesteps of the scheduler.

    Raises:
        UserError: it needs other inputs, or its ``sample_size`` is invalid.
    """
    config = module.config
    read_sides("sample_size", config.sample_size)
    if module.class_embedding is not None:
        raise UserError(
            "the U-Net is conditioned on classes (num_class_embeds or class_embed_type), but images to forget and to "
            "retain have no class labels: use a U-Net without class embedding."
        )
    if config.time_embedding_type == "fourier":
        raise UserError(
            "the U-Net takes the logarithm of a noise level (time_embedding_type fourier), as in score SDEs, but the "
            "first timestep of DDPM is 0: use a U-Net with positional or learned time embeddings."
        )
    if config.time_embedding_type == "learned" and module.time_proj.num_embeddings < timesteps:
        raise UserError(
            f"the U-Net has learned embeddings of {module.time_proj.num_embeddings} timesteps and its scheduler has "
            f"{timesteps}: correct num_train_timesteps in scheduler_config.json."
        )
    if config.time_embedding_type == "learned" and config.get(PALETTE, False):
        raise UserError(
            f"the U-Net has learned embeddings of whole timesteps, but {PALETTE} in its config.json says that it takes "
            "ᾱ: delete that entry, or use a U-Net with positional time embeddings."
        )
    if any(hasattr(block, "skip_conv") for block in module.down_blocks):
        raise UserError(
            "the U-Net has skip blocks (NCSN++), which take one image of 3 channels, but family diffusion passes it "
            "two images: use a U-Net with other blocks."
        )
