"""Compare the weights of a checkpoint with those that an architecture has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...errors import UserError
from .checkpoint import Checkpoint

__all__ = ["check_layout"]


def check_layout(
    checkpoint: Checkpoint, expected: Mapping[str, Sequence[int]], ignored: Collection[str], remedy: str
) -> None:
    """Check that a checkpoint has exactly the expected weights.

    Args:
        checkpoint: the checkpoint.
        expected: shape of each weight that it must have.
        ignored: names of weights that it may have besides.
        remedy: what to do if it has others, for the message.

    Raises:
        UserError: a weight is missing, left over, of another shape or not floating point; the first is named.
    """
    for name, shape in expected.items():
        if name not in checkpoint.weights:
            raise UserError(f"{checkpoint.path} lacks the weight {name}: {remedy}.")
        weight = checkpoint.weights[name]
        if not weight.is_floating_point():
            raise UserError(f"{checkpoint.path} has {name} as {weight.dtype}, not as floating point: {remedy}.")
        given = list(weight.shape)
        if given != list(shape):
            raise UserError(f"{checkpoint.path} has {name} with shape {given}, not {list(shape)}: {remedy}.")
    for name in checkpoint.weights:
        if name not in expected and name not in ignored:
            raise UserError(f"{checkpoint.path} has {name}, which is no weight of this architecture: {remedy}.")
