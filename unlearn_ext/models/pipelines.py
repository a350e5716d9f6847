"""The pipeline classes of family latent-diffusion: what each passes to its U-Net, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError

__all__ = ["KINDS", "LATENT_CHANNELS", "Kind", "check_kind"]

LATENT_CHANNELS = 4

# Pipelines are `Any` here: type checkers see the classes of diffusers as placeholders without attributes.


@dataclass(frozen=True)
class Kind:
    """What the pipelines of a class pass to their U-Net, after the noisy latent.

    Attributes:
        channels: number of input channels of the U-Net.
        takes_mask: whether the mask of the hole is an input, between the noisy latent and that of the corrupted image.
        scales_condition: whether the latent of the corrupted image is multiplied by the VAE's ``scaling_factor``, as
            the noisy latent is.
        embed: computes what the text encoders make of a prompt: embeddings [1, L, D], and for SDXL a pooled one [1, P].
        call: calls the pipeline without drawing anything from the original image, with the latents of the corrupted
            images [N, 4, h, w] as the U-Net takes them, the masks of the holes, bool [N, 1, H, W], and further
            arguments; returns images [N, 3, H, W] in [0, 1].
    """

    channels: int
    takes_mask: bool
    scales_condition: bool
    embed: Callable[[Any, str], tuple[torch.Tensor, ...]]
    call: Callable[..., torch.Tensor]


def check_kind(name: str, components: Mapping[str, Any]) -> None:
    """Check that a class of pipelines is supported.

    Args:
        name: name of the class.
        components: the components of the pipeline, by name.

    Raises:
        UserError: it is not.
    """
    if name in KINDS:
        return
    if components.get("transformer") not in (None, [None, None]):
        raise UserError(
            f"{name} is a diffusion transformer: all its blocks run on the same tokens, so it has no down blocks and "
            "middle block that could be E, and it is trained by flow matching. Family latent-diffusion needs a "
            f"pipeline with a UNet2DConditionModel: {', '.join(KINDS)}."
        )
    raise UserError(
        f"family latent-diffusion supports the pipelines {', '.join(KINDS)}, whose U-Nets see the corrupted image; "
        f"this is a {name}."
    )


def _embed(pipeline: Any, prompt: str) -> tuple[torch.Tensor, ...]:
    return (pipeline.encode_prompt(prompt, pipeline.vae.device, 1, False)[0],)


def _embed_pix2pix(pipeline: Any, prompt: str) -> tuple[torch.Tensor, ...]:
    return (pipeline._encode_prompt(prompt, pipeline.vae.device, 1, False),)  # this class has no public method


def _embed_xl(pipeline: Any, prompt: str) -> tuple[torch.Tensor, ...]:
    device = pipeline.vae.device
    embeddings, _, pooled, _ = pipeline.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
    return embeddings, pooled


def _inpaint(pipeline: Any, condition: torch.Tensor, hole: torch.Tensor, **more: Any) -> torch.Tensor:
    height, width = hole.shape[-2:]
    size_only = torch.zeros(len(hole), 3, height, width)  # with the latents given, the pipeline reads only its size
    return pipeline(
        image=size_only, mask_image=hole.float(), masked_image_latents=condition, height=height, width=width,
        strength=1.0, output_type="pt", **more,
    ).images  # fmt: skip


def _edit(pipeline: Any, condition: torch.Tensor, hole: None, **more: Any) -> torch.Tensor:
    return pipeline(image=condition, output_type="pt", **more).images


KINDS = {
    "StableDiffusionInpaintPipeline": Kind(9, True, True, _embed, _inpaint),
    "StableDiffusionInstructPix2PixPipeline": Kind(8, False, False, _embed_pix2pix, _edit),
    "StableDiffusionXLInpaintPipeline": Kind(9, True, True, _embed_xl, _inpaint),
}
