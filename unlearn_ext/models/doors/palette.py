"""Palette's inpainting networks, ``*_Network.pth`` and ``*_Network_ema.pth`` with their JSON, as family diffusion.

Source of the layout: the repository Janspiry/Palette-Image-to-Image-Diffusion-Models, whose U-Net is that of
guided-diffusion (Dhariwal and Nichol, arXiv 2105.05233).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ...errors import UserError, require
from ..diffusion import PALETTE, Diffusion
from ..protocol import I2IModel
from .checkpoint import Checkpoint
from .key_map import Pair, fill, written_back
from .palette_settings import REMEDY, UNetSettings, read_settings, scheduler_of

__all__ = ["FAMILY", "NAME", "load", "recognises", "write_back"]

NAME = "palette"
FAMILY = "diffusion"

_PREFIX = "denoise_fn."
_MARKS = ("cond_embed.0.weight", "noise_level_mlp.1.weight")  # of guided-diffusion's U-Net and of SR3's

# Buffers of the noise schedule. They are computed from the betas, which the JSON gives exactly.
_SCHEDULE = (
    "gammas", "sqrt_recip_gammas", "sqrt_recipm1_gammas", "posterior_log_variance_clipped", "posterior_mean_coef1",
    "posterior_mean_coef2",
)  # fmt: skip

# Layers of the original's blocks, and those of the blocks of diffusers.
_BLOCKS: dict[str, dict[str, tuple[str, ...]]] = {
    "ResnetBlock2D": {
        "in_layers.0": ("norm1",),
        "in_layers.2": ("conv1",),
        "emb_layers.1": ("time_emb_proj",),
        "out_layers.0": ("norm2",),
        "out_layers.3": ("conv2",),
        "skip_connection": ("conv_shortcut",),
    },
    "Attention": {
        "norm": ("group_norm",),
        "qkv": ("to_q", "to_k", "to_v"),
        "proj_out": ("to_out.0",),
    },
    "Downsample2D": {"op": ("conv",)},
    "Upsample2D": {"conv": ("conv",)},
}
_OUTSIDE = {
    "cond_embed.0": "time_embedding.linear_1",
    "cond_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def recognises(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has the layout of Palette's networks."""
    return any(_PREFIX + mark in checkpoint.weights for mark in _MARKS)


def load(checkpoint: Checkpoint) -> Diffusion:
    """Return the U-Net with the noise schedule of its training; the JSON is needed for both.

    Raises:
        UserError: there is no JSON, or it does not belong to the checkpoint; it has entries that ``UNet2DModel`` has no
            counterpart of; or the checkpoint lacks a weight or has another.
    """
    arguments, schedule = read_settings(checkpoint)
    module = require("diffusers", "images").UNet2DModel
    configuration = _configuration(arguments)
    try:
        with torch.device("meta"):  # nothing is allocated before names and shapes are compared
            unet = module(**configuration)
    except Exception as error:  # of any type, by a number that is none or does not divide another
        said = textwrap.shorten(str(error), 240, placeholder=" …")
        raise UserError(f"unet in the configuration of {checkpoint.path} is invalid ({said}): {REMEDY}.") from error
    used = {name: weight for name, weight in checkpoint.weights.items() if name not in _SCHEDULE}
    fill(unet, replace(checkpoint, weights=used), _pairs(unet, arguments), REMEDY)
    unet.register_to_config(**{PALETTE: True})
    return Diffusion(unet, scheduler_of(checkpoint, schedule))


def write_back(model: I2IModel, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the checkpoint's weights with the model's in their place; the buffers of the schedule stay.

    Raises:
        UserError: there is no JSON, or it is incomplete.
    """
    arguments, _ = read_settings(checkpoint)
    return written_back(model.module.state_dict(), checkpoint, _pairs(model.module, arguments))


def _pairs(unet: Any, arguments: UNetSettings) -> list[Pair]:
    """Return all weights of a U-Net."""
    present, pairs = unet.state_dict().keys(), []
    for theirs, ours in [*_OUTSIDE.items(), *_places(unet)]:
        block = unet.get_submodule(ours)
        for layer, parts in _BLOCKS.get(type(block).__name__, {"": ("",)}).items():
            heads = 1 if len(parts) == 1 or arguments.use_new_attention_order else block.heads
            for kind in ("weight", "bias"):
                names = tuple(".".join(filter(None, (ours, part, kind))) for part in parts)
                if names[0] in present:  # a block may lack conv_shortcut
                    pairs.append(Pair(".".join(filter(None, (_PREFIX + theirs, layer, kind))), names, heads))
    return pairs


def _places(unet: Any) -> Iterator[tuple[str, str]]:
    """Yield the place of each block in the original, which numbers them, and in ``UNet2DModel``."""
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for places in _rows(block, "downsamplers", with_last=False):
            yield from ((f"input_blocks.{number}.{j}", f"down_blocks.{i}.{place}") for j, place in enumerate(places))
            number += 1
    for j, place in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{j}", f"mid_block.{place}"
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for places in _rows(block, "upsamplers", with_last=True):
            yield from ((f"output_blocks.{number}.{j}", f"up_blocks.{i}.{place}") for j, place in enumerate(places))
            number += 1


def _rows(block: Any, resamplers: str, with_last: bool) -> list[list[str]]:
    """Return the places in a block that have one number in the original.

    Args:
        block: a down or up block.
        resamplers: name of its layers that change the size.
        with_last: whether these have the number of the last row, not their own.
    """
    attends = hasattr(block, "attentions")
    rows = [[f"resnets.{j}", *([f"attentions.{j}"] if attends else [])] for j in range(len(block.resnets))]
    last = [f"{resamplers}.0"] if getattr(block, resamplers) is not None else []
    if with_last:
        rows[-1] += last
    elif last:
        rows.append(last)
    return rows


def _configuration(read: UNetSettings) -> dict[str, Any]:
    """Return the arguments of ``UNet2DModel``."""
    kinds = ("Resnet{}sampleBlock2D" if read.resblock_updown else "{}Block2D", "Attn{}Block2D")
    resample = "resnet" if read.resblock_updown else "conv"
    return {
        "sample_size": read.image_size,
        "in_channels": read.in_channel,
        "out_channels": read.out_channel,
        "block_out_channels": read.sizes,
        "layers_per_block": read.res_blocks,
        "down_block_types": tuple(kinds[attends].format("Down") for attends in read.attending),
        "up_block_types": tuple(kinds[attends].format("Up") for attends in reversed(read.attending)),
        "downsample_type": resample,
        "upsample_type": resample,
        "resnet_time_scale_shift": "scale_shift" if read.use_scale_shift_norm else "default",
        "attention_head_dim": read.head_channels,
        "attn_norm_num_groups": 32,
        "dropout": read.dropout,
    }
