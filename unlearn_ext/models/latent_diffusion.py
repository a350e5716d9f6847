"""Latent diffusion (Rombach et al., arXiv 2112.10752) that fills holes or edits images: pipelines of `diffusers`."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from .._utils import draws
from ..errors import UserError
from ..tasks import Corruption
from .freezing import adopt, unwrapped
from .from_diffusers import check_class
from .holes import hidden
from .latent_space import LatentSpace
from .noise_schedule import noise_schedule
from .pipelines import KINDS, LATENT_CHANNELS, check_kind
from .progress_bars import without_bars
from .prompts import Prompts
from .protocol import Inputs
from .read_pipeline import read_pipeline
from .sides import read_sides
from .unet_encoder import joined, parameters_of_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SAMPLING_STEPS", "LatentDiffusion"]

# Pipelines are `Any` here: type checkers see the classes of diffusers as placeholders without attributes.

SAMPLING_STEPS = 25
_AT_ONCE = 8  # images drawn at once; limits memory
_PIXELS = 8  # the pipelines take only images whose sides are multiples of it
_AESTHETIC_SCORE = 6.0  # the default of SDXL's pipelines


class LatentDiffusion:
    """A pipeline of ``diffusers`` that fills holes or edits images, as an :class:`~unlearn_ext.models.I2IModel`.

    The U-Net takes the noisy latent of the whole image, for inpainting the mask of the hole at the latent's resolution,
    and the latent of the corrupted image T(x), concatenated; and a timestep and a prompt. InstructPix2Pix does not take
    the mask: the corrupted image is the image to edit. As in the training of such models, the timestep is random.

    E is the down blocks and the middle block; its latents are all features that the up blocks get from them. Frozen are
    D (the up blocks), what E and D share (the time embedding and the first convolution), the VAE and the text encoders.

    The noise of f1 replaces both latents of an image: it is drawn in latent space, where images have about variance 1.
    The mask, the timestep and the prompt stay.

    Args:
        pipeline: a pipeline of a class in ``KINDS``, in float32. Wrappers of the U-Net, such as those of
            ``torch.compile``, are removed, evaluation mode is set, and everything except E is frozen.
        prompts: the prompts of the images; by default an empty prompt.

    Attributes:
        module: the U-Net, a ``UNet2DConditionModel``.
        pipeline: the whole pipeline, which is saved.
        noise_schedule: a ``DDPMScheduler`` with the betas of the pipeline's scheduler.
        prompts: the prompts of the images.
        frozen: a digest of the VAE and of the text encoders.

    Raises:
        UserError: the pipeline is of another class; its weights are not float32; its U-Net needs more than the inputs
            above; its VAE has other latents than Stable Diffusion's; or its noise schedule is not DDPM's.
    """

    family = "latent-diffusion"
    channels = 3
    random = True

    def __init__(self, pipeline: Any, prompts: Prompts | None = None) -> None:
        self.pipeline, name = pipeline, type(pipeline).__name__
        check_kind(name, getattr(pipeline, "components", {}))
        self._kind = KINDS[name]
        self.module: Any = unwrapped(self.pipeline.unet)
        self.pipeline.unet = self.module
        _check_unet(self.module, name)
        _check_vae(self.pipeline.vae)
        self.noise_schedule = noise_schedule(self.pipeline.scheduler)
        self.prompts = prompts or Prompts()
        self._space = LatentSpace(self.pipeline, self._kind)
        self.frozen = (self._space.digest(),)
        adopt(self)

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model was made for; in Python it takes other sizes as well.

        Raises:
            UserError: the configuration of the U-Net gives no size, or a size that is not square.
        """
        sides = read_sides("sample_size", self.module.config.sample_size)
        if sides is None or sides[0] != sides[1]:
            raise UserError(
                f"sample_size in unet/config.json is {self.module.config.sample_size!r}; write the side of the latents "
                f"into it, that of the images divided by {self._space.scale}, such as 64."
            )
        return sides[0] * self._space.scale

    @property
    def device(self) -> torch.device:
        """The device of the U-Net; the frozen parts follow it."""
        return self.module.device

    def inputs(self, images: torch.Tensor, task: Corruption, draw: int = 0) -> Inputs:
        """Return the latents, random noise and timesteps, the mask of the hidden pixels, and the prompts' embeddings.

        Returns:
            The latents of the images and of the corrupted images, float [N, 8, h, w]; the noise, float [N, 4, h, w];
            the timesteps, int64 [N]; the mask, bool [N, 1, H, W], except for InstructPix2Pix; the embeddings of the
            prompts, float [N, L, D]; and for SDXL their pooled embeddings, float [N, P].

        Raises:
            UserError: the sides of the images are not multiples of what the pipeline needs; the task hides nothing that
                is visible at the latents' resolution; or an image has no prompt, see :class:`Prompts`.
        """
        self._check_sides(images)
        hole = (self._hole(images, task),) if self._kind.takes_mask else ()
        sides = (images, task(images))
        latents = torch.cat([self._space.latents(side, self.device) for side in sides], 1)
        drawn = list(draws.generators(images, "timestep", draw))
        steps, shape = len(self.noise_schedule.betas), (LATENT_CHANNELS, *latents.shape[2:])
        timesteps = torch.stack([torch.randint(steps, (), generator=generator) for generator in drawn])
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in drawn])
        embeddings = self._space.embeddings(self.prompts.of(images), self.device)
        return tuple(part.to(images.device) for part in (latents, noise, timesteps, *hole, *embeddings))

    def seen(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, *conditions: torch.Tensor
    ) -> torch.Tensor:
        """Return the U-Net's input [N, 9 or 8, h, w]; the arguments are those that :meth:`inputs` returns."""
        whole, _ = latents.chunk(2, 1)
        noisy = self.noise_schedule.add_noise(whole, noise, timesteps)
        mask = [_coarse(conditions[0], latents.shape[2:])] if self._kind.takes_mask else []
        return torch.cat([noisy, *mask, self._condition(latents)], 1)

    def encode(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, *conditions: torch.Tensor
    ) -> torch.Tensor:
        """Return the features [N, D] of the down and middle blocks, scaled to have equal weights in a mean over D.

        ``UNet2DConditionModel.forward`` computes the same features, but does not return them. The arguments are those
        that :meth:`inputs` returns.
        """
        unet, seen = self.module, self.seen(latents, noise, timesteps, *conditions)
        prompts, *pooled = conditions[self._kind.takes_mask :]
        if unet.config.center_input_sample:
            seen = 2 * seen - 1
        time = unet.time_embedding(unet.get_time_embed(seen, timesteps))
        if pooled:
            added = {"text_embeds": pooled[0], "time_ids": self._time_ids(latents)}
            time = time + unet.get_aug_embed(time, prompts, added)
        if unet.time_embed_act is not None:
            time = unet.time_embed_act(time)
        # On a CPU in channels-last format, torch 2.13 crashes in the first norm if its input requires no gradient.
        hidden = unet.conv_in(seen).requires_grad_(torch.is_grad_enabled())
        features = []
        for block in unet.down_blocks:
            hidden, skipped = block(hidden_states=hidden, temb=time, **_attended(block, prompts))
            features.extend(skipped)
        if unet.mid_block is not None:
            features.append(unet.mid_block(hidden, time, **_attended(unet.mid_block, prompts)))
        return joined(features)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Return images [N, 3, H, W] that the pipeline draws with its own scheduler, from noise seeded by T(x).

        The pipeline gets the latent of the corrupted image, the mask and the prompt, and its own defaults for all else.
        The features E(T(x)) are not used: they belong to one timestep, and sampling runs over many. A safety checker is
        left out: its black image would look like forgetting.
        """
        both, _, _, *conditions = inputs
        pipeline, drawn = self._drawing(), []
        parts = (self._condition(both), *conditions)
        for condition, *few in zip(*(part.split(_AT_ONCE) for part in parts), strict=True):
            hole = few.pop(0) if self._kind.takes_mask else None
            embeddings = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), few, strict=False))
            images = self._kind.call(
                pipeline, condition, hole, latents=draws.normal(condition, "sample").to(condition),
                generator=list(draws.generators(condition, "sampler")), num_inference_steps=SAMPLING_STEPS,
                **embeddings,
            )  # fmt: skip
            drawn.append(images * 2 - 1)
        return torch.cat(drawn)

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the down blocks and the middle block."""
        return parameters_of_encoder(self.module)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes: less memory, about a third more time."""
        self.module.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the whole pipeline, for the ``from_pretrained`` of its class; prompts are not saved."""
        with without_bars("transformers"):
            self.pipeline.save_pretrained(folder, safe_serialization=True)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> Self:
        """Load a pipeline from a folder or a hub id; only safetensors files, because a pickle can run code.

        Raises:
            UserError: the checkpoint does not exist, is of another class, or lacks weights; an extra is missing; or as
                for the class itself.
        """
        return cls(read_pipeline(path_or_id))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the U-Net; the frozen parts, which nothing changes, and their outputs are shared."""
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__ = dict(self.__dict__)
        copied.module, copied.pipeline = copy.deepcopy(self.module, memo), copy.copy(self.pipeline)
        copied.pipeline.unet = copied.module
        return copied

    def _hole(self, images: torch.Tensor, task: Corruption) -> torch.Tensor:
        hole = hidden(images, task, self.family)
        sides = [side // self._space.scale for side in hole.shape[2:]]
        if not _coarse(hole, sides).flatten(1).any(1).all():
            raise UserError(
                f"task {task} hides too little: at the resolution of the latents, one element for "
                f"{self._space.scale}x{self._space.scale} pixels, nothing of it is left; choose a larger hole."
            )
        return hole

    def _check_sides(self, images: torch.Tensor) -> None:
        multiple = math.lcm(_PIXELS, self._space.scale)
        height, width = images.shape[-2:]
        if height % multiple or width % multiple:
            raise UserError(
                f"the model takes images whose sides are multiples of {multiple} pixels, not {height}x{width}; resize "
                "them or, if unet/config.json asks for this size, correct its sample_size."
            )

    def _condition(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents of the corrupted images as the U-Net takes them, [N, 4, h, w]."""
        _, corrupted = latents.chunk(2, 1)
        return corrupted if self._kind.scales_condition else corrupted / self._space.factor

    def _time_ids(self, latents: torch.Tensor) -> torch.Tensor:
        """Return SDXL's ``time_ids`` [N, 6 or 5] of images: the size, no crop, and the size again or a score."""
        sides = [side * self._space.scale for side in latents.shape[2:]]
        scored = self.pipeline.config.requires_aesthetics_score
        ids = [*sides, 0, 0, *([_AESTHETIC_SCORE] if scored else sides)]
        return latents.new_tensor(ids).expand(len(latents), -1)

    def _drawing(self) -> Any:
        """Return the pipeline with a scheduler of its own, which sampling changes, and without a safety checker."""
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = copy.deepcopy(self.pipeline.scheduler)
        if hasattr(pipeline, "safety_checker"):
            pipeline.safety_checker = None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _coarse(hole: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """Return masks [N, 1, H, W] at the latents' resolution, float [N, 1, h, w]: nearest pixels, as in the pipelines."""
    return functional.interpolate(hole.float(), size=list(sides))


def _attended(block: Any, prompts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the prompts as an argument of a block, if it has cross-attention."""
    return {"encoder_hidden_states": prompts} if getattr(block, "has_cross_attention", False) else {}


def _check_unet(unet: Any, pipeline: str) -> None:
    """Check that a U-Net needs only latents, timesteps and prompts.

    Raises:
        UserError: it does not.
    """
    check_class(unet, LatentDiffusion.family, "UNet2DConditionModel")
    config, channels = unet.config, KINDS[pipeline].channels
    if config.in_channels != channels or config.out_channels != LATENT_CHANNELS:
        raise UserError(
            f"the U-Net of a {pipeline} must take {channels} channels and return {LATENT_CHANNELS}, so that it sees "
            f"the corrupted image; this one takes {config.in_channels} and returns {config.out_channels}. A "
            "text-to-image U-Net with 4 channels cannot be used."
        )
    wanted = "text_time" if "XL" in pipeline else None
    if config.addition_embed_type != wanted:
        raise UserError(
            f"the U-Net of a {pipeline} must have addition_embed_type {wanted} in unet/config.json, not "
            f"{config.addition_embed_type}."
        )
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if config.get(name) is not None:
            raise UserError(
                f"the U-Net has {name} in unet/config.json: it needs an input that images to forget and to retain do "
                "not have, such as a class or a picture as prompt, or is distilled to few steps."
            )


def _check_vae(vae: Any) -> None:
    """Raise ``UserError`` if the VAE does not have Stable Diffusion's latents of RGB images."""
    check_class(vae, LatentDiffusion.family, "AutoencoderKL")
    config = vae.config
    if (config.in_channels, config.latent_channels) != (3, LATENT_CHANNELS) or config.get("latents_mean") is not None:
        raise UserError(
            f"the VAE takes {config.in_channels} channels and has {config.latent_channels} latent channels; family "
            f"latent-diffusion needs 3 and {LATENT_CHANNELS}, without latents_mean in vae/config.json."
        )
