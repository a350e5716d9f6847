"""Prepare a module for unlearning: remove wrappers, set evaluation mode, freeze everything except E."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..errors import UserError
from .protocol import I2IModel

__all__ = ["adopt", "check_float32", "unwrapped"]

_COMPILED = "_orig_mod"  # name of the wrapped module in torch.compile's wrapper
_WRAPPERS = (torch.nn.DataParallel, DistributedDataParallel, AveragedModel)  # the wrapped module is `module`


def unwrapped(module: Any) -> Any:
    """Return a module without the wrappers of torch.compile, data parallelism and weight averaging.

    In a saved file, wrappers add a prefix to the names of the weights, and a plain module cannot load these.
    Wrapped submodules are replaced in place.

    Args:
        module: a module with any number of wrappers.
    """
    if not isinstance(module, torch.nn.Module):
        return module  # the family's own check rejects it
    while _COMPILED in module._modules or isinstance(module, _WRAPPERS):
        module = module._modules[_COMPILED if _COMPILED in module._modules else "module"]
    for name, part in list(module._modules.items()):
        if part is not None and (inner := unwrapped(part)) is not part:
            module._modules[name] = inner
    return module


def adopt(model: I2IModel) -> None:
    """Set evaluation mode and freeze everything except E.

    Raises:
        UserError: the number of image channels is not 1 or 3, or the weights are not float32.
    """
    if model.channels not in (1, 3):
        raise UserError(
            f"the model takes images of {model.channels} channels; give one that takes 1 (grey) or 3 (RGB)."
        )
    check_float32(model.module)
    model.module.eval().requires_grad_(False)
    for parameter in model.encoder_parameters():
        parameter.requires_grad_(True)


def check_float32(module: torch.nn.Module) -> None:
    """Check that a module's weights are float32; half precision would round small updates to zero.

    Raises:
        UserError: some have another dtype.
    """
    for parameter in module.parameters():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UserError(
                f"the model's weights are {kind}; make them float32 (module.float()), and choose the precision of the "
                "computations in the settings."
            )
