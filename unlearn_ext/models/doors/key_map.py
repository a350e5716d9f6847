"""Move weights between a checkpoint and a module by one table of names, in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...errors import UserError
from .checkpoint import Checkpoint

__all__ = ["Pair", "fill", "renamed", "written_back"]


@dataclass(frozen=True)
class Pair:
    """A weight of a checkpoint and its place in a module.

    Attributes:
        theirs: name in the checkpoint.
        ours: its name in the module; three names for query, key and value that the checkpoint has in one weight.
        heads: the rows of that weight are ordered by this number of heads first, then by query, key and value.
    """

    theirs: str
    ours: tuple[str, ...]
    heads: int = 1

    def read(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the module's weights of the checkpoint's, as views."""
        parts = weight.unflatten(0, (self.heads, len(self.ours), -1)).unbind(1)
        return tuple(part.flatten(0, 1) for part in parts)

    def write(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the checkpoint's weight of the module's; the inverse of :meth:`read`."""
        return torch.stack([weight.unflatten(0, (self.heads, -1)) for weight in weights], 1).flatten(0, 2)


def renamed(names: Mapping[str, str]) -> list[Pair]:
    """Return the pairs of weights that differ in their names only.

    Args:
        names: the name in the checkpoint of each of the module's weights, by its name in the module.
    """
    return [Pair(theirs, (ours,)) for ours, theirs in names.items()]


def fill(module: torch.nn.Module, checkpoint: Checkpoint, pairs: Sequence[Pair], remedy: str) -> None:
    """Load a checkpoint's weights into a module, as float32 copies; neither side may have a weight that is left over.

    Args:
        module: the module; its own weights are replaced and may be on the device ``meta``.
        checkpoint: the checkpoint, without the weights that are to be ignored.
        pairs: all weights of the module.
        remedy: what the user can do about a wrong weight, for the message.

    Raises:
        UserError: a weight is missing, left over, of another shape or not floating-point.
    """
    weights, state = checkpoint.weights, module.state_dict()
    if missing := [pair.theirs for pair in pairs if pair.theirs not in weights]:
        raise UserError(f"{checkpoint.path} lacks {_counted(missing)}: {remedy}.")
    if left := sorted(weights.keys() - {pair.theirs for pair in pairs}):
        raise UserError(f"{checkpoint.path} has {_counted(left)}, which the model has no place for: {remedy}.")
    filled: dict[str, torch.Tensor] = {}
    for pair in pairs:
        weight = weights[pair.theirs]
        size = pair.write([state[name].to("meta") for name in pair.ours]).shape
        # A convolution over one pixel, whose last sides are 1, may be a linear layer in the module.
        asked = size + (1,) * (weight.dim() - len(size))
        if not weight.is_floating_point():
            raise UserError(f"{checkpoint.path} has {pair.theirs} as {weight.dtype}, not as floating-point: {remedy}.")
        if weight.shape != asked:
            raise UserError(
                f"{checkpoint.path} has {pair.theirs} with shape {list(weight.shape)} where the model has "
                f"{list(asked)}: {remedy}."
            )
        for name, part in zip(pair.ours, pair.read(weight.reshape(size)), strict=True):
            filled[name] = part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    module.load_state_dict(filled, assign=True)


def written_back(
    trained: Mapping[str, torch.Tensor], checkpoint: Checkpoint, pairs: Iterable[Pair]
) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights, with some replaced: its names, shapes and dtypes.

    Args:
        trained: the module's weights; those that are not in it are not replaced.
        checkpoint: the checkpoint that the module was loaded from.
        pairs: as for :func:`fill`.
    """
    written = dict(checkpoint.weights)
    for pair in pairs:
        if pair.ours[0] in trained:
            original = written[pair.theirs]
            weight = pair.write([trained[name].detach().cpu() for name in pair.ours])
            written[pair.theirs] = weight.reshape(original.shape).to(original.dtype)
    return written


def _counted(names: list[str]) -> str:
    more = f" and {len(names) - 1} more weights" if len(names) > 1 else ""
    return f"{names[0]}{more}"
