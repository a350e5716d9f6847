"""Take a module into a family: without wrappers, in evaluation mode, and all but E frozen."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..errors import UserError
from .protocol import I2IModel

__all__ = ["adopt", "check_float32", "unwrapped"]

_COMPILED = "_orig_mod"  # the name under which torch.compile's wrapper holds the module
_WRAPPERS = (torch.nn.DataParallel, DistributedDataParallel, AveragedModel)  # hold it as `module`


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module without the wrappers of torch.compile, data parallelism and weight averaging.

    They would put their own names before those of the weights in a saved file, which then no plain module loads.
    Wrapped parts of the module are replaced by what is in the wrapper, in place.

    Args:
        module: wrapped or not, any number of times.
    """
    if not isinstance(module, torch.nn.Module):
        return module  # for the family to reject
    while _COMPILED in module._modules or isinstance(module, _WRAPPERS):
        module = module._modules[_COMPILED if _COMPILED in module._modules else "module"]
    for name, part in list(module._modules.items()):
        if part is not None and (inner := unwrapped(part)) is not part:
            module._modules[name] = inner
    return module


def adopt(model: I2IModel) -> None:
    """Put a model's module in evaluation mode, and freeze all but E.

    Raises:
        UserError: its images have neither one channel nor three, or its weights are not float32.
    """
    if model.channels not in (1, 3):
        raise UserError(f"the model takes images of {model.channels} channels; only 1 (grey) and 3 (RGB) are known.")
    check_float32(model.module)
    model.module.eval().requires_grad_(False)
    for parameter in model.encoder_parameters():
        parameter.requires_grad_(True)


def check_float32(module: torch.nn.Module) -> None:
    """Check that a module's weights are float32: steps are small beside them, and half precision rounds them away.

    Raises:
        UserError: some are of another dtype.
    """
    for parameter in module.parameters():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UserError(
                f"the model's weights are {kind}; make them float32 (module.float()), and choose the precision to "
                "compute in by the settings."
            )
