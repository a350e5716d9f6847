"""Move weights between a checkpoint and a module by one table of names, in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...errors import UserError
from .checkpoint import Checkpoint

__all__ = ["fill", "written_back"]


def fill(module: torch.nn.Module, checkpoint: Checkpoint, names: Mapping[str, str], remedy: str) -> None:
    """Load a checkpoint's weights into a module, as float32 copies; neither side may have a weight that is left over.

    Args:
        module: the module; its own weights are replaced and may be on the device ``meta``.
        checkpoint: the checkpoint, without the weights that are to be ignored.
        names: the name in the checkpoint of each of the module's weights, by its name in the module.
        remedy: what the user can do about a wrong weight, for the message.

    Raises:
        UserError: a weight is missing, left over, of another shape or not floating-point.
    """
    weights, state = checkpoint.weights, module.state_dict()
    if missing := [name for name in names.values() if name not in weights]:
        raise UserError(f"{checkpoint.path} lacks {_counted(missing)}: {remedy}.")
    if left := sorted(weights.keys() - set(names.values())):
        raise UserError(f"{checkpoint.path} has {_counted(left)}, which the model has no place for: {remedy}.")
    for name, original in names.items():
        weight, asked = weights[original], list(state[name].shape)
        if not weight.is_floating_point():
            raise UserError(f"{checkpoint.path} has {original} as {weight.dtype}, not as floating-point: {remedy}.")
        if list(weight.shape) not in (asked, [*asked, 1, 1]):  # a 1×1 convolution may be a linear layer in the module
            raise UserError(
                f"{checkpoint.path} has {original} with shape {list(weight.shape)} where the model has {asked}: "
                f"{remedy}."
            )
    filled = {
        name: weights[original].reshape(state[name].shape).to(torch.float32, copy=True)
        for name, original in names.items()
    }
    module.load_state_dict(filled, assign=True)


def written_back(
    trained: Mapping[str, torch.Tensor], checkpoint: Checkpoint, names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights, with some replaced: its names, shapes and dtypes.

    Args:
        trained: the weights to replace, by their names in the module.
        checkpoint: the checkpoint that the module was loaded from.
        names: as for :func:`fill`.
    """
    replaced = {
        names[name]: weight.detach().cpu().reshape(original.shape).to(original.dtype)
        for name, weight in trained.items()
        for original in [checkpoint.weights[names[name]]]
    }
    return {**checkpoint.weights, **replaced}


def _counted(names: list[str]) -> str:
    more = f" and {len(names) - 1} more weights" if len(names) > 1 else ""
    return f"{names[0]}{more}"
