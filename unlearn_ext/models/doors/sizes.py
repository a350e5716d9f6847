"""Sizes of a model that the names and shapes of a checkpoint's weights show."""

from __future__ import annotations

import re

from ...errors import UserError
from .checkpoint import Checkpoint

__all__ = ["layers", "shape"]


def shape(checkpoint: Checkpoint, name: str, dimensions: int, remedy: str) -> list[int]:
    """Return the shape of a weight.

    Args:
        checkpoint: the checkpoint.
        name: name of the weight.
        dimensions: number of dimensions that it must have.
        remedy: what the user can do about a wrong weight, for the message.

    Raises:
        UserError: it is missing, has another number of dimensions, or one of size 0.
    """
    if name not in checkpoint.weights:
        raise UserError(f"{checkpoint.path} lacks {name}: {remedy}.")
    found = list(checkpoint.weights[name].shape)
    if len(found) != dimensions or 0 in found:
        raise UserError(
            f"{checkpoint.path} has {name} with shape {found}; it must have {dimensions} dimensions, none of size 0: "
            f"{remedy}."
        )
    return found


def layers(checkpoint: Checkpoint, prefix: str) -> int:
    """Return the number of layers in a list, from the names of their weights."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, checkpoint.weights) if match})
