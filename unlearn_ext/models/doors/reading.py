"""Read a checkpoint file without running anything that it contains."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ...errors import UserError, require
from .checkpoint import Checkpoint
from .configuration import find_configuration, read_configuration
from .pickles import RecordedTensor, Stub
from .torch_file import LEGACY, ZIP, Damaged, TorchFile, read_legacy, read_zip

__all__ = ["read"]

# What files of other kinds begin with, and what to say about them.
_OTHERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file itself: run `git lfs pull`",
    b"<!DOCTYPE": "it is a web page: the download went wrong, or needs a login",
    b"<html": "it is a web page: the download went wrong, or needs a login",
    b"GGUF": "it is a GGUF file, whose weights are quantised: give the checkpoint that it was made from",
    b"\x89HDF": "it is an HDF5 file, as Keras writes it: this package reads files of PyTorch",
    b"\x93NUMPY": "it is an array of NumPy: this package reads files of PyTorch",
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"7z\xbc\xaf": "it is a 7z archive: unpack it first",
    b"Rar!": "it is a RAR archive: unpack it first",
    b"\x80": "it is a pickle, but not one that torch.save wrote: save the state_dict() with safetensors or torch.save",
}
_LONGEST = 300  # characters of a text from a file, in a message
_NOTHING_KNOWN = "it is neither a safetensors file nor one of torch.save"


def read(path: Path, configuration: Path | None = None, *, data: bool = True) -> Checkpoint:
    """Read the weights in a checkpoint file, what else it contains, and its configuration file.

    It may be a safetensors file, or a file of ``torch.save`` of any version, such as Lightning's. Its pickle is not
    executed, see :mod:`.pickles`. All sizes are compared with the file's before anything is allocated.

    Args:
        path: the file.
        configuration: its configuration, YAML or JSON; by default the one that :func:`find_configuration` finds.
        data: whether to read the weights. Otherwise they have only shapes and types, which is enough to recognise them.

    Raises:
        UserError: the file or its configuration cannot be read, or contains no state dict.
    """
    configuration = configuration or find_configuration(path)
    config = read_configuration(configuration) if configuration else {}
    try:
        with path.open("rb") as file:
            weights, content = _content(path, file, data)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Damaged as damage:
        raise UserError(f"{path} is no checkpoint that can be read: {_readable(str(damage))}.") from damage
    except Exception as error:  # of any type: nothing in the file can be relied on
        said = _readable(str(error)) or type(error).__name__
        raise UserError(f"{path} is no checkpoint that can be read: it is damaged ({said}).") from error
    if odd := [name for name in weights if _readable(name) != name]:
        raise UserError(f"{path} has a weight whose name is no readable text: {_readable(repr(odd[0]))}.")
    return Checkpoint(path, weights, content, config)


def _readable(text: str) -> str:
    """Return a text from a file as it may be printed: one line, not too long, without control characters."""
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    return " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in cut).split())


def _content(path: Path, file: BinaryIO, data: bool) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
    """Return the weights in a file, and what else it contains.

    Raises:
        Damaged: the file is not read or contains no state dict.
    """
    start, size = file.read(32), os.fstat(file.fileno()).st_size
    if size == 0:
        raise Damaged("it is empty")
    if start.startswith(ZIP):
        return _from_torch(read_zip(file), file, data)
    if start.startswith(LEGACY):
        return _from_torch(read_legacy(file), file, data)
    if _is_safetensors(start, size):
        return _from_safetensors(path, data)
    raise Damaged(next((why for magic, why in _OTHERS.items() if start.startswith(magic)), _NOTHING_KNOWN))


def _is_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file begins with the length of a JSON header and the header's first character."""
    return len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8


def _from_safetensors(path: Path, data: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with require("safetensors", "images").safe_open(path, framework="pt") as opened:
        names = opened.keys()
        if data:
            weights = {name: opened.get_tensor(name) for name in names}
        else:
            weights = {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
        content = dict(opened.metadata() or {})
    if not weights:
        raise Damaged("it contains no weights")
    return weights, content


def _from_torch(saved: TorchFile, file: BinaryIO, data: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the state dict in what was saved, and the other entries beside it."""
    recorded, others = _state_dict(saved.content)
    if odd := [name for name in recorded if not isinstance(name, str)]:
        raise Damaged(f"the name of a weight is {odd[0]!r}, not a text")
    return saved.tensors(file, recorded) if data else saved.outlines(recorded), others


def _state_dict(content: Any) -> tuple[dict[str, RecordedTensor], dict[str, Any]]:
    """Return the only state dict in what was saved, and the other entries beside it.

    Raises:
        Damaged: there is none, or more than one.
    """
    if isinstance(content, Stub):
        raise Damaged(
            f"it is a whole object of the class {content.name}: where that class is installed, save its state_dict()"
        )
    if not isinstance(content, dict):
        kind = type(content).__name__.removeprefix("Recorded")
        raise Damaged(f"it contains a value of the type {kind}, not a state dict: save the model's state_dict()")
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    inner = [name for name, value in named.items() if _is_state_dict(value)]
    outer = {name: value for name, value in content.items() if isinstance(value, RecordedTensor)}
    if inner and any(one.shape for one in outer.values()):  # numbers, such as the step, may be tensors without sides
        raise Damaged(
            f"it contains weights, such as {next(iter(outer))!r}, and the state dict {inner[0]!r}: save the ones that "
            "you mean in a file of their own"
        )
    if len(inner) > 1:
        raise Damaged(
            f"it contains {len(inner)} state dicts, {', '.join(map(repr, inner))}: save the one that you mean in a "
            "file of its own"
        )
    recorded = content[inner[0]] if inner else outer
    if not recorded:
        raise Damaged(_why_no_weights(content))
    return recorded, {name: value for name, value in named.items() if name not in (inner or recorded)}


def _why_no_weights(content: Mapping[Any, Any]) -> str:
    """Return a clause that says why a dictionary has no state dict: perhaps a tensor in it is sparse or quantised."""
    dictionaries = [content, *(value for value in content.values() if isinstance(value, dict))]
    for name, value in (item for found in dictionaries for item in found.items()):
        if isinstance(value, Stub) and value.name.startswith(("torch._utils._rebuild", "torch._tensor._rebuild")):
            return f"{name} is made by {value.name}, and only dense weights are read: save them so"
    return "it contains no weights: save the model's state_dict()"


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(part, RecordedTensor) for part in value.values())
