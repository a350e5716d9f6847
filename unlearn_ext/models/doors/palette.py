"""Palette's inpainting networks, ``*_Network.pth`` and ``*_Network_ema.pth`` with their JSON, as family diffusion.

Source of the layout: the repository Janspiry/Palette-Image-to-Image-Diffusion-Models, whose U-Net is that of
guided-diffusion (Dhariwal and Nichol, arXiv 2105.05233).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ...errors import UserError, require
from ..diffusion import PALETTE, Diffusion
from ..protocol import I2IModel
from .checkpoint import Checkpoint
from .layout import check_layout

__all__ = ["FAMILY", "NAME", "load", "recognises", "write_back"]

NAME = "palette"
FAMILY = "diffusion"

_PREFIX = "denoise_fn."
_MARKS = ("cond_embed.0.weight", "noise_level_mlp.1.weight")  # of the two U-Nets that Palette's code has
_REMEDY = "give the JSON file that the model was trained with as --model-config FILE"

_KINDS = {"linear": "linear", "quad": "scaled_linear"}  # noise schedules, by their names in diffusers
_MOST_STEPS = 100_000  # no model is trained with more; a schedule of 10¹² would fill the memory

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
    arguments, schedule = _read(checkpoint)
    module = require("diffusers", "images").UNet2DModel
    configuration = _configuration(arguments)
    try:
        with torch.device("meta"):  # nothing is allocated before names and shapes are compared
            unet = module(**configuration)
    except Exception as error:  # of any type, by a number that is none or does not divide another
        said = textwrap.shorten(str(error), 240, placeholder=" …")
        raise UserError(f"unet in the configuration of {checkpoint.path} is invalid ({said}): {_REMEDY}.") from error
    pairs = list(_pairs(unet, arguments))
    empty = unet.state_dict()
    expected = {pair.theirs: pair.write([empty[name] for name in pair.ours]).shape for pair in pairs}
    check_layout(checkpoint, expected, _SCHEDULE, _REMEDY)
    weights = {
        name: part.float().clone(memory_format=torch.contiguous_format)
        for pair in pairs
        for name, part in zip(pair.ours, pair.read(checkpoint.weights[pair.theirs]), strict=True)
    }
    unet.load_state_dict(weights, assign=True)
    unet.register_to_config(**{PALETTE: True})
    return Diffusion(unet, _scheduler(checkpoint, schedule))


def write_back(model: I2IModel, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the checkpoint's weights with the model's in their place; the buffers of the schedule stay.

    Raises:
        UserError: there is no JSON, or it is incomplete.
    """
    arguments, _ = _read(checkpoint)
    ours, written = model.module.state_dict(), dict(checkpoint.weights)
    for pair in _pairs(model.module, arguments):
        old = checkpoint.weights[pair.theirs]
        written[pair.theirs] = pair.write([ours[name] for name in pair.ours]).to(old).contiguous()
    return written


@dataclass(frozen=True)
class _UNet:
    """The entry ``unet`` of the JSON, with the defaults of the original; the names are its own."""

    image_size: int
    in_channel: int
    inner_channel: int
    out_channel: int
    res_blocks: int
    attn_res: Sequence[int]
    dropout: float = 0
    channel_mults: Sequence[float] = (1, 2, 4, 8)
    conv_resample: bool = True
    use_checkpoint: bool = False
    use_fp16: bool = False
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of channels of each level."""
        return tuple(int(self.inner_channel * factor) for factor in self.channel_mults)

    @property
    def attending(self) -> tuple[bool, ...]:
        """Whether each level has attention; ``attn_res`` counts how often smaller its images are."""
        return tuple(2**level in self.attn_res for level in range(len(self.channel_mults)))

    @property
    def head_channels(self) -> int | None:
        """Number of channels of each head of attention; None if there is one head with all channels.

        Raises:
            UserError: it differs between layers, which ``UNet2DModel`` does not support.
        """
        if self.num_head_channels != -1:
            return self.num_head_channels
        widths = {size for size, attends in zip(self.sizes, self.attending, strict=True) if attends} | {self.sizes[-1]}
        if self.num_heads_upsample not in (-1, self.num_heads) or (self.num_heads != 1 and len(widths) > 1):
            raise UserError(
                "the U-Net's heads of attention have different numbers of channels (num_heads, num_heads_upsample), "
                "which diffusers.UNet2DModel does not support: only models with num_head_channels can be read."
            )
        return widths.pop() // self.num_heads if self.num_heads != 1 else None


@dataclass(frozen=True)
class _Pair:
    """A weight of the original and its place in ``UNet2DModel``.

    Attributes:
        theirs: name in the checkpoint.
        ours: its name in ``UNet2DModel``; three names for query, key and value, which the original has in one weight.
        heads: the rows of that weight are ordered by this number of heads first, then by query, key and value.
        convolution: whether it is a convolution over one pixel, and ours a linear layer.
    """

    theirs: str
    ours: tuple[str, ...]
    heads: int = 1
    convolution: bool = False

    def read(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """Return our weights of the original's."""
        rows = weight.squeeze(-1) if self.convolution else weight
        return [part.flatten(0, 1) for part in rows.unflatten(0, (self.heads, len(self.ours), -1)).unbind(1)]

    def write(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the original's weight of ours; the inverse of :meth:`read`."""
        rows = torch.stack([weight.unflatten(0, (self.heads, -1)) for weight in weights], 1).flatten(0, 2)
        return rows.unsqueeze(-1) if self.convolution else rows


def _pairs(unet: Any, arguments: _UNet) -> Iterator[_Pair]:
    """Yield all weights of a U-Net."""
    present = unet.state_dict().keys()
    for theirs, ours in [*_OUTSIDE.items(), *_places(unet)]:
        block = unet.get_submodule(ours)
        for layer, parts in _BLOCKS.get(type(block).__name__, {"": ("",)}).items():
            for kind in ("weight", "bias"):
                names = tuple(".".join(filter(None, (ours, part, kind))) for part in parts)
                if names[0] in present:  # a block may lack conv_shortcut
                    yield _Pair(
                        ".".join(filter(None, (_PREFIX + theirs, layer, kind))), names,
                        heads=1 if len(parts) == 1 or arguments.use_new_attention_order else block.heads,
                        convolution=hasattr(block, "to_q") and layer != "norm" and kind == "weight",
                    )  # fmt: skip


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


def _read(checkpoint: Checkpoint) -> tuple[_UNet, Mapping[str, Any]]:
    """Return the entry ``unet`` and the entry ``beta_schedule`` of the JSON.

    Raises:
        UserError: they are missing or invalid, or do not belong to the checkpoint's weights.
    """
    path = checkpoint.path
    if _PREFIX + _MARKS[0] not in checkpoint.weights:
        raise UserError(f'{path} has the U-Net of SR3; only Palette networks with "module_name": "guided_diffusion".')
    if not checkpoint.config:
        raise UserError(f"{path} does not say how its attention and its noise are made: {_REMEDY}.")
    try:
        arguments = checkpoint.config["model"]["which_networks"][0]["args"]
        entries, schedule = dict(arguments["unet"]), dict(arguments["beta_schedule"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(
            f"the configuration of {path} lacks model, which_networks, args with unet and beta_schedule: {_REMEDY}."
        ) from None
    return _unet(checkpoint, entries), schedule


def _unet(checkpoint: Checkpoint, entries: Mapping[str, Any]) -> _UNet:
    """Return the entry ``unet`` of the JSON.

    Raises:
        UserError: an entry is unknown, missing or invalid, is not supported, or contradicts the weights.
    """
    known = {field.name for field in fields(_UNet)}
    if unknown := [name for name in entries if name not in known]:
        raise UserError(f"unet in the configuration of {checkpoint.path} has an unknown entry {unknown[0]}: {_REMEDY}.")
    try:
        read = _UNet(**entries)
        blocks = len(read.sizes) * (read.res_blocks + 1)
        levels = read.attending
    except (TypeError, ValueError) as error:
        raise UserError(f"unet in the configuration of {checkpoint.path} is invalid ({error}): {_REMEDY}.") from None
    # The number and width of the blocks, before a module is built: a wrong one could be huge.
    pattern = re.compile(rf"{re.escape(_PREFIX)}input_blocks\.(\d+)\.")
    found = len({match[1] for match in map(pattern.match, checkpoint.weights) if match})
    *_, width = 0, *checkpoint.weights[_PREFIX + _MARKS[0]].shape
    if (blocks, read.inner_channel) != (found, width) or not levels or read.res_blocks < 1:
        raise UserError(
            f"unet in the configuration of {checkpoint.path} has {blocks} input blocks of {read.inner_channel} "
            f"channels, and the weights have {found} of {width}: {_REMEDY}."
        )
    if read.channel_mults[0] != 1 or not (read.conv_resample or read.resblock_updown):
        raise UserError(
            f"unet in the configuration of {checkpoint.path} begins with another channel_mults than 1, or resamples "
            "without weights (conv_resample and resblock_updown false): diffusers.UNet2DModel does not support it."
        )
    return read


def _configuration(read: _UNet) -> dict[str, Any]:
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


def _scheduler(checkpoint: Checkpoint, schedule: Mapping[str, Any]) -> Any:
    """Return the noise schedule of training. That of testing is not needed: the U-Net takes ᾱ of any schedule.

    Raises:
        UserError: it is incomplete or of a kind that is not supported, or the checkpoint was trained with another.
    """
    path = checkpoint.path
    try:
        train: dict[str, Any] = {"linear_start": 1e-6, "linear_end": 1e-2, **schedule["train"]}
        kind, steps = str(train["schedule"]), train["n_timestep"]
        betas = {"beta_start": float(train["linear_start"]), "beta_end": float(train["linear_end"])}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"beta_schedule in the configuration of {path} lacks train with schedule, n_timestep, linear_start and "
            f"linear_end: {_REMEDY}."
        ) from None
    if kind not in _KINDS or type(steps) is not int or not 1 < steps <= _MOST_STEPS:
        raise UserError(
            f"train in beta_schedule in the configuration of {path} is {kind!r} with n_timestep {steps!r}; supported "
            f"are {' and '.join(_KINDS)} with 2 to {_MOST_STEPS} timesteps."
        )
    ddpm = require("diffusers", "images").DDPMScheduler
    scheduler = ddpm(num_train_timesteps=steps, beta_schedule=_KINDS[kind], **betas)
    kept, ours = checkpoint.weights.get("gammas"), scheduler.alphas_cumprod
    if kept is not None and (kept.shape != ours.shape or not torch.allclose(kept.float(), ours, rtol=1e-3, atol=1e-6)):
        raise UserError(f"{path} was saved with another noise schedule than train in its configuration: {_REMEDY}.")
    return scheduler
