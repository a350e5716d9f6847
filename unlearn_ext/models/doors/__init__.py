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
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import torch

from ...errors import UserError
from ..protocol import I2IModel
from .checkpoint import Checkpoint
from .configuration import CONFIGURATIONS, find_configuration
from .reading import read

__all__ = ["CONFIGURATIONS", "DOORS", "Checkpoint", "Door", "companions", "door_of", "find_configuration", "read"]

# Names of the modules. No two of them recognise the same checkpoint.
DOORS = ("mae", "mage", "palette", "stable_diffusion")


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
    checkpoint = read(path, configuration, data=False)
    for name in DOORS:
        door = cast(Door, importlib.import_module(f".{name}", __name__))
        if door.recognises(checkpoint):
            return door
    if (path.parent / "config.json").is_file():
        raise UserError(f"{path} is a file; give the folder that the model's library saved.")
    raise UserError(
        f"{path} has {len(checkpoint.weights)} weights, such as {next(iter(checkpoint.weights))}, in no known layout: "
        f"give a file of one of the formats {', '.join(DOORS)}, or a folder that the save_pretrained of the model's "
        "library wrote."
    )


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
