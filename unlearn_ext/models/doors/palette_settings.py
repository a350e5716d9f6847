"""The JSON of Palette's training runs: the sizes of the U-Net and the noise schedule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ...errors import UserError, require
from .checkpoint import Checkpoint

__all__ = ["REMEDY", "UNetSettings", "read_settings", "scheduler_of"]

REMEDY = "give the JSON file that the model was trained with as --model-config FILE"

_TASKS = ("inpainting", "uncropping")
_KINDS = {"linear": "linear", "quad": "scaled_linear"}  # noise schedules, by their names in diffusers
_MOST_STEPS = 100_000  # no model is trained with more; a schedule of 10¹² would fill the memory
_INPUT_BLOCK = re.compile(r"denoise_fn\.input_blocks\.(\d+)\.")
_EMBEDDING = "denoise_fn.cond_embed.0.weight"


@dataclass(frozen=True)
class UNetSettings:
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
            UserError: it is not between 1 and the width of a layer, or differs between layers, which ``UNet2DModel``
                does not support.
        """
        widths = {size for size, attends in zip(self.sizes, self.attending, strict=True) if attends} | {self.sizes[-1]}
        if self.num_head_channels != -1:
            channels = self.num_head_channels
        elif self.num_heads_upsample not in (-1, self.num_heads) or (self.num_heads != 1 and len(widths) > 1):
            raise UserError(
                "the U-Net's heads of attention have different numbers of channels (num_heads, num_heads_upsample), "
                "which diffusers.UNet2DModel does not support: only models with num_head_channels can be read."
            )
        elif self.num_heads == 1:
            return None
        else:
            channels = self.sizes[-1] // self.num_heads if self.num_heads > 0 else 0
        if not 1 <= channels <= min(widths):
            raise UserError(
                f"the U-Net's heads of attention have {channels} channels (num_head_channels, num_heads); it must be 1 "
                f"to {min(widths)}, the width of a layer: {REMEDY}."
            )
        return channels


def read_settings(checkpoint: Checkpoint) -> tuple[UNetSettings, Mapping[str, Any]]:
    """Return the entry ``unet`` and the entry ``beta_schedule`` of the JSON.

    Raises:
        UserError: they are missing or invalid, or do not belong to the checkpoint's weights.
    """
    path = checkpoint.path
    if _EMBEDDING not in checkpoint.weights:
        raise UserError(
            f'{path} has the U-Net of SR3: give a network of Palette with "module_name": "guided_diffusion".'
        )
    if not checkpoint.config:
        raise UserError(f"{path} does not say how its attention and its noise are made: {REMEDY}.")
    try:
        arguments = checkpoint.config["model"]["which_networks"][0]["args"]
        entries, schedule = dict(arguments["unet"]), dict(arguments["beta_schedule"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(
            f"the configuration of {path} lacks model, which_networks, args with unet and beta_schedule: {REMEDY}."
        ) from None
    _check_task(checkpoint)
    return _unet(checkpoint, entries), schedule


def _check_task(checkpoint: Checkpoint) -> None:
    """Raise ``UserError`` if the model was trained for a task that has no hole."""
    try:
        task = checkpoint.config["model"]["which_model"]["args"]["task"]
    except (KeyError, TypeError):
        return  # only the network was described
    if task not in _TASKS:
        raise UserError(
            f"{checkpoint.path} was trained for {task}, but family diffusion only fills in hidden pixels: give a model "
            f"for {' or '.join(_TASKS)}."
        )


def _unet(checkpoint: Checkpoint, entries: Mapping[str, Any]) -> UNetSettings:
    """Return the entry ``unet`` of the JSON.

    Raises:
        UserError: an entry is unknown, missing or invalid, is not supported, or contradicts the weights.
    """
    known = {field.name for field in fields(UNetSettings)}
    if unknown := [name for name in entries if name not in known]:
        raise UserError(f"unet in the configuration of {checkpoint.path} has an unknown entry {unknown[0]}: {REMEDY}.")
    for name in (field.name for field in fields(UNetSettings) if field.type == "int" and field.name in entries):
        if type(entries[name]) is not int:
            raise UserError(
                f"unet in the configuration of {checkpoint.path} has {name}: {entries[name]!r}; it must be a whole "
                "number."
            )
    try:
        read = UNetSettings(**entries)
        blocks = len(read.sizes) * (read.res_blocks + 1)
        levels = read.attending
    except (TypeError, ValueError) as error:
        raise UserError(f"unet in the configuration of {checkpoint.path} is invalid ({error}): {REMEDY}.") from None
    # The number and width of the blocks, before a module is built: a wrong one could be huge.
    found = len({match[1] for match in map(_INPUT_BLOCK.match, checkpoint.weights) if match})
    *_, width = 0, *checkpoint.weights[_EMBEDDING].shape
    if (blocks, read.inner_channel) != (found, width) or not levels or read.res_blocks < 1:
        raise UserError(
            f"unet in the configuration of {checkpoint.path} has {blocks} input blocks of {read.inner_channel} "
            f"channels, and the weights have {found} of {width}: {REMEDY}."
        )
    if read.channel_mults[0] != 1 or not (read.conv_resample or read.resblock_updown):
        raise UserError(
            f"unet in the configuration of {checkpoint.path} begins with another channel_mults than 1, or resamples "
            "without weights (conv_resample and resblock_updown false): diffusers.UNet2DModel does not support it."
        )
    return read


def scheduler_of(checkpoint: Checkpoint, schedule: Mapping[str, Any]) -> Any:
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
            f"linear_end: {REMEDY}."
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
        raise UserError(f"{path} was saved with another noise schedule than train in its configuration: {REMEDY}.")
    return scheduler
