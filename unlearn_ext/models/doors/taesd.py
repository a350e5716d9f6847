"""TAESD and its relatives, as the .pth files of their author: an encoder's and a decoder's, side by side.

``taesd``, ``taesdxl``, ``taesd3`` and ``taef1`` become ``diffusers.AutoencoderTiny``, ``taef2`` a
:class:`~unlearn_ext.models.taef2.TAEF2`. Source: https://github.com/madebyollin/taesd.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError, require
from ..autoencoder_tiny import AutoencoderTiny
from ..protocol import I2IModel
from .checkpoint import Checkpoint
from .key_map import Pair, fill, renamed, written_back
from .reading import read

__all__ = ["FAMILY", "NAME", "companions", "file_in", "load", "recognises", "write_back"]

NAME = "taesd"
FAMILY = "autoencoder"

_SUFFIXES = (".pt", ".pth", ".safetensors")
_BLOCK = re.compile(r"\d+\.conv\.4\.weight")  # the last convolution of a residual block
_REMEDY = "give the files of taesd, taesdxl, taesd3, taef1 or taef2 as their author published them"


def recognises(checkpoint: Checkpoint) -> bool:
    """Return whether all names begin with the number of a layer, and residual blocks are among them."""
    names = checkpoint.weights
    return all(name.partition(".")[0].isdigit() for name in names) and any(map(_BLOCK.fullmatch, names))


def load(checkpoint: Checkpoint) -> I2IModel:
    """Return the model of an encoder's or a decoder's file; the other is found beside it by its name.

    The entry ``sample_size`` of the configuration is the side in pixels to which image files are resized; without it,
    256.

    Raises:
        UserError: the other file is missing or of another model; a weight is missing, left over or of another shape; or
            the configuration has another entry.
    """
    parts = {_part(one): one for one in (checkpoint, _sibling(checkpoint))}
    if len(parts) == 1:
        raise UserError(f"{checkpoint.path} and the file beside it are both {next(iter(parts))}s: {_REMEDY}.")
    channels = {part: _channels(part, one) for part, one in parts.items()}
    if len(set(channels.values())) > 1:
        raise UserError(
            f"{parts['encoder'].path} has latents of {channels['encoder']} channels and {parts['decoder'].path} of "
            f"{channels['decoder']}: give an encoder and a decoder of the same model."
        )
    if left := sorted(checkpoint.config.keys() - {"sample_size"}):
        raise UserError(
            f"the configuration of {checkpoint.path} has {left[0]}, but it may only have sample_size: name another "
            'file with --model-config, such as one with {"sample_size": 256}.'
        )
    with torch.device("meta"):
        module = _class(parts["encoder"])(latent_channels=channels["encoder"])
    module.register_to_config(sample_size=checkpoint.config.get("sample_size"))
    for part, one in parts.items():
        layers = getattr(module, part)
        fill(layers, one, _pairs(part, layers), _REMEDY)
    return AutoencoderTiny(module)


def write_back(model: I2IModel, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the weights of the encoder's file: those of the model, with the file's names and dtypes.

    Raises:
        UserError: the checkpoint is the decoder's file.
    """
    if _part(checkpoint) == "decoder":
        raise UserError(
            f"{checkpoint.path} is the decoder, which unlearning does not change: give the encoder's file as --model."
        )
    encoder: Any = model.module.get_submodule("encoder")
    return written_back(encoder.state_dict(), checkpoint, _pairs("encoder", encoder))


def companions(path: Path) -> list[Path]:
    """Return the file that belongs to an encoder's or decoder's, by its name; none if it is not there."""
    other = path.with_name(_swapped(path.name))
    return [other] if other != path and other.is_file() else []


def file_in(place: Path) -> Path | None:
    """Return the encoder's file of a folder, or that of a decoder's file; None if there is no such pair.

    Raises:
        UserError: the folder has several pairs, or a file in it cannot be read.
    """
    if place.is_file():
        others = companions(place) if "decoder" in place.name else []
        one = read(place, data=False) if others else None
        return others[0] if one and recognises(one) and _part(one) == "decoder" else None
    files = [file for file in sorted(place.glob("*encoder.*")) if file.suffix in _SUFFIXES and companions(file)]
    pairs = [file for file in files if recognises(read(file, data=False))]
    if len(pairs) > 1:
        raise UserError(
            f"{place} has {pairs[0].name} and {pairs[1].name}: give one of the files instead of the folder."
        )
    return pairs[0] if pairs else None


def _part(checkpoint: Checkpoint) -> str:
    """Return whether a file is the encoder or the decoder, whose first layer has no weights."""
    return "encoder" if "0.weight" in checkpoint.weights else "decoder"


def _pairs(part: str, layers: torch.nn.Module) -> list[Pair]:
    """Return all weights of a part; the decoder's first layer in the file, a clamp, is not one in diffusers."""
    shift = 1 if part == "decoder" else 0
    split = {name: name.removeprefix("layers.").split(".", 1) for name in layers.state_dict()}
    return renamed({name: f"{int(number) + shift}.{rest}" for name, (number, rest) in split.items()})


def _channels(part: str, checkpoint: Checkpoint) -> int:
    """Return the number of channels of the latents: outputs of the encoder's last layer, inputs of the decoder's first.

    Raises:
        UserError: the file has no such layer.
    """
    name = "14.weight" if part == "encoder" else "1.weight"
    weight = checkpoint.weights.get(name)
    if weight is None or weight.ndim != 4 or not weight.numel():
        raise UserError(f"{checkpoint.path} has no convolution {name}, so it is not a model of this kind: {_REMEDY}.")
    return weight.shape[0 if part == "encoder" else 1]


def _class(checkpoint: Checkpoint) -> Any:
    """Return the module's class: TAEF2 has pools in its blocks."""
    if any(".pool." in name for name in checkpoint.weights):
        require("diffusers", "images")
        from ..taef2 import TAEF2

        return TAEF2
    return require("diffusers", "images").AutoencoderTiny


def _swapped(name: str) -> str:
    """Return a file name with decoder in place of the last encoder in it, or the reverse."""
    ours, theirs = sorted(("encoder", "decoder"), key=name.rfind, reverse=True)
    return theirs.join(name.rsplit(ours, 1))


def _sibling(checkpoint: Checkpoint) -> Checkpoint:
    """Return the file that belongs to an encoder's or decoder's.

    Raises:
        UserError: it is not there.
    """
    found = companions(checkpoint.path)
    if not found:
        part, name = _part(checkpoint), checkpoint.path.name
        other = _swapped(part)
        asked = _swapped(name) if _swapped(name) != name else f"*_{other}{checkpoint.path.suffix}"
        raise UserError(f"{checkpoint.path} is only the {part}: put the {other}'s file beside it, as {asked}.")
    return replace(checkpoint, path=found[0], weights=read(found[0]).weights, content={})
