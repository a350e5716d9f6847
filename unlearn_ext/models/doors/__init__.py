"""Doors: checkpoint files in the layouts of other programmes, each in a module of this package.

A door is a module with

- ``NAME``, the name of the format, and ``FAMILY``, the family of its models;
- ``recognises(checkpoint)``: whether a checkpoint is of this format, from the names and shapes of its weights only;
- ``load(checkpoint)``: the model;
- ``write_back(model, checkpoint)``: the weights of the checkpoint, with E's replaced by those of the model;
- where a model is in several files, ``companions(path)``: the others that belong to one of them.
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
    "CONFIGURATIONS", "DOORS", "Checkpoint", "Door", "companions", "door_of", "find_configuration", "load", "read",
    "write_back",
]  # fmt: skip

# Names of the modules. No two of them recognise the same checkpoint.
DOORS = ("mae",)


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
        UserError: the file cannot be read, or no door recognises it.
    """
    checkpoint = _unwrapped(read(path, configuration, data=False))
    found = [door for door in map(_door, DOORS) if door.recognises(checkpoint)]
    assert len(found) < 2, [door.NAME for door in found]
    if found:
        return found[0]
    if (path.parent / "config.json").is_file():
        raise UserError(f"{path} is a file; give the folder that the model's library saved.")
    raise UserError(
        f"{path} has {len(checkpoint.weights)} weights, such as {next(iter(checkpoint.weights))}, in no known layout: "
        f"give a file of one of the formats {', '.join(DOORS)}, or a folder that the save_pretrained of the model's "
        "library wrote."
    )


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
        UserError: as for :func:`load`.
    """
    checkpoint = read(path, configuration)
    written = door_of(path, configuration).write_back(model, _unwrapped(checkpoint))
    prefix = _prefix(checkpoint)
    named = {f"{prefix}{name}": weight for name, weight in written.items()}
    same = {name: (weight.shape, weight.dtype) for name, weight in checkpoint.weights.items()}
    assert {name: (weight.shape, weight.dtype) for name, weight in named.items()} == same
    return named


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
