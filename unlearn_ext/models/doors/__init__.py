"""Doors: checkpoint files in the layouts of other programs, each in a module of this package.

A door is a module with

- ``NAME``, the name of the format, and ``FAMILY``, the family of its models;
- ``recognises(checkpoint)``: whether a checkpoint is of this format, from the names and shapes of its weights only;
- ``load(checkpoint)``: the model;
- ``write_back(model, checkpoint)``: the weights of the checkpoint, with E's replaced by those of the model;
- where a model is in several files, ``companions(path)``: the others that belong to one of them; and
  ``file_in(place)``: the one to load for a folder that contains them, or for another of them; or None.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import torch

from ...errors import UserError
from ..protocol import I2IModel
from .checkpoint import Checkpoint
from .configuration import CONFIGURATIONS, find_configuration
from .reading import read

__all__ = [
    "CONFIGURATIONS", "DOORS", "Checkpoint", "Door", "companions", "door_of", "file_in", "find_configuration", "load",
    "read", "write_back",
]  # fmt: skip

# Names of the modules. No two of them recognise the checkpoint of one model.
DOORS = ("mae", "taming_vqgan", "taesd", "mage", "palette", "stable_diffusion")


class Door(Protocol):
    """A module of this package that knows a format; see above."""

    NAME: str
    FAMILY: str

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint, whose weights may be on the device ``meta``, is of this format."""

    def load(self, checkpoint: Checkpoint) -> I2IModel:
        """Return the model of a checkpoint.

        Raises:
            UserError: a weight is missing, left over or of another shape, or the configuration is not enough.
        """

    def write_back(self, model: I2IModel, checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
        """Return all weights of a checkpoint, with those of E replaced by the model's."""


def door_of(path: Path, configuration: Path | None = None) -> Door:
    """Return the module of the format that a checkpoint file has; only names and shapes are read.

    Raises:
        UserError: the file cannot be read, or not exactly one door recognises it.
    """
    checkpoint = _unwrapped(read(path, configuration, data=False))
    doors = [_door(name) for name in DOORS]
    found = [door for door in doors if door.recognises(checkpoint)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{path} has weights of several formats, {' and '.join(door.NAME for door in found)}: save those of one "
            "model in a file of its own."
        )
    if (path.parent / "config.json").is_file():
        raise UserError(f"{path} is a file; give the folder that the model's library saved.")
    raise UserError(
        f"{path} has weights, such as {next(iter(checkpoint.weights))}, in no known layout: give a file of one of the "
        f"formats {', '.join(door.NAME for door in doors)}, or a folder that the library's save_pretrained wrote."
    )


def file_in(place: Path) -> Path:
    """Return the file to load for a folder, or a file, that belongs to a model of several files; else the place itself.

    Raises:
        UserError: the folder contains the files of several models.
    """
    if place.is_file() or (place.is_dir() and not (place / "config.json").is_file()):
        for door in map(_door, DOORS):
            if hasattr(door, "file_in") and (found := door.file_in(place)):
                return found
    return place


def load(path: Path, configuration: Path | None = None) -> I2IModel:
    """Return the model of a checkpoint file.

    Args:
        path: the file.
        configuration: its configuration, if it is not the one that :func:`find_configuration` finds.

    Raises:
        UserError: the file cannot be read, no door recognises it, or as for the door's ``load``.
    """
    return door_of(path, configuration).load(_unwrapped(read(path, configuration)))


def write_back(model: I2IModel, path: Path, configuration: Path | None = None) -> dict[str, torch.Tensor]:
    """Return all weights of a checkpoint file, with its names, shapes and types, and with those of E replaced.

    Args:
        model: a model that was loaded from this file and trained.
        path: the file.
        configuration: as for :func:`load`.

    Raises:
        UserError: a new weight is too large for the file's type of it, or as for :func:`load`.
    """
    checkpoint = read(path, configuration)
    written = door_of(path, configuration).write_back(model, _unwrapped(checkpoint))
    prefix = _prefix(checkpoint)
    named = {f"{prefix}{name}": weight for name, weight in written.items()}
    same = {name: (weight.shape, weight.dtype) for name, weight in checkpoint.weights.items()}
    assert {name: (weight.shape, weight.dtype) for name, weight in named.items()} == same
    for name, weight in named.items():
        if weight is not checkpoint.weights[name] and not weight.isfinite().all():
            raise UserError(
                f"the new {name} is too large for {weight.dtype}, in which {path} has it: export without --format, "
                "which writes float32."
            )
    return named


def companions(path: Path, configuration: Path | None = None) -> list[Path]:
    """Return the files that a checkpoint file is loaded with: its configuration, and other parts of the model.

    Args:
        path: the file.
        configuration: its configuration, if it is not the one that :func:`find_configuration` finds.

    Raises:
        UserError: as for :func:`door_of`.
    """
    door = door_of(path, configuration)
    parts = door.companions(path) if hasattr(door, "companions") else []
    found = configuration or find_configuration(path)
    return [*([found] if found else []), *parts]


def _door(name: str) -> Door:
    return cast(Door, importlib.import_module(f".{name}", __name__))


def _unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint without the prefix that torch.compile or data parallelism put before all its names."""
    prefix = _prefix(checkpoint)
    return replace(checkpoint, weights={name.removeprefix(prefix): w for name, w in checkpoint.weights.items()})


def _prefix(checkpoint: Checkpoint) -> str:
    found = re.match(r"(?:module\.|_orig_mod\.)*", next(iter(checkpoint.weights)))
    prefix = found[0] if found else ""
    return prefix if all(name.startswith(prefix) for name in checkpoint.weights) else ""
