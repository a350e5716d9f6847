"""Models whose weights are divided among processes, with FSDP2 (Zhao et al., arXiv 2304.11277)."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from .._torch_internals import is_view
from .._utils import distributed
from ..errors import UserError
from .protocol import I2IModel, Inputs

__all__ = ["Sharded", "placed_like", "shard", "undivided", "whole"]


class Sharded:
    """A model of any family whose weights are divided among processes; an :class:`~unlearn_ext.models.I2IModel`.

    Each process stores an equal part of every parameter, and of its gradient and optimizer state. The weights of a
    block are gathered before it runs, and freed after it. :func:`shard` makes these models.

    As ``encode`` and ``decode`` are collective operations, every process must call them equally often, with the images
    of its own. The same holds for copies, :func:`whole` and ``save_pretrained``.

    Args:
        model: a model of any family, whose weights are divided in place; they may be without storage, as in blueprints.
        blueprint: a copy of it on the meta device, of which further copies are made.
        device: device of the parts.

    Attributes:
        model: the model of the family, with DTensors as parameters; its own ``encode`` and ``decode`` fail.
    """

    def __init__(self, model: I2IModel, blueprint: I2IModel, device: torch.device) -> None:
        self.model, self._blueprint, self.device = model, blueprint, device
        self._root = _Root(model)
        _divide(self._root, device)

    @property
    def family(self) -> str:
        """Name of the family."""
        return self.model.family

    @property
    def channels(self) -> int:
        """Number of image channels, 1 or 3."""
        return self.model.channels

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model was made for."""
        return self.model.size

    @property
    def random(self) -> bool:
        """Whether the inputs of E contain random numbers."""
        return self.model.random

    @property
    def module(self) -> torch.nn.Module:
        """All parameters, as DTensors."""
        return self.model.module

    def inputs(self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0) -> Inputs:
        """Return the inputs of E, as the model's family does."""
        return self.model.inputs(images, task, draw)

    def encode(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Apply E; every process must call it."""
        return self._root.encode(*inputs, **named)

    def decode(self, latents: torch.Tensor, *inputs: Any, **named: Any) -> torch.Tensor:
        """Apply D; every process must call it."""
        return self._root.decode(latents, *inputs, **named)

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of E, as DTensors."""
        return self.model.encoder_parameters()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes, also of further copies."""
        for model in (self.model, self._blueprint):
            model.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the whole model; every process must call it, and the first one writes."""
        model = whole(self)
        if distributed.is_first():
            model.save_pretrained(folder)

    def whole(self) -> I2IModel:
        """Return a copy with whole weights on the CPU in the first process; the others return this model."""
        if not distributed.is_first():
            for tensor in self.module.parameters():
                distributed.whole(tensor)
            return self
        made = copy.deepcopy(self._blueprint)
        made.module.to_empty(device="cpu")
        _copy_into(made, self, distributed.whole)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Sharded:
        """Copy the parts of this process. FSDP's own modules cannot be copied, so a new model is divided."""
        copied = memo[id(self)] = Sharded(copy.deepcopy(self._blueprint), self._blueprint, self.device)
        copied._root.to_empty(device=self.device)
        _copy_into(copied, self, lambda tensor: tensor)
        return copied


class _Root(torch.nn.Module):
    """The module whose methods FSDP wraps: a family calls parts of its module, and not the module's ``forward``."""

    def __init__(self, model: I2IModel) -> None:
        super().__init__()
        self.module = model.module
        self._encode, self._decode = model.encode, model.decode

    def encode(self, *inputs: Any, **named: Any) -> torch.Tensor:
        latents = self._encode(*inputs, **named)
        return latents.clone() if is_view(latents) else latents  # FSDP's hook would be lost with in-place operations

    def decode(self, *inputs: Any, **named: Any) -> torch.Tensor:
        return self._decode(*inputs, **named)


def shard(model: I2IModel, device: torch.device | str | None = None) -> I2IModel:
    """Divide a model's weights among all processes, with FSDP2's ``fully_shard``.

    Call it in every process with the same model, on the CPU, after ``torch.distributed`` is initialised. The model is
    moved to the device block by block, so that the whole need not fit there. The result can be passed to
    :func:`unlearn_ext.unlearn` and :func:`unlearn_ext.sweep` like any other model. A block is an element of a
    ``ModuleList`` or ``Sequential``; all other parameters are gathered together.

    Args:
        model: a model of any family; it is divided in place, so use only the result.
        device: device of this process, a CPU or a GPU; by default that of the model.

    Raises:
        UserError: ``torch.distributed`` is not initialised, or the memory format of a parameter is not contiguous.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise UserError(
            "a model is divided among processes, but torch.distributed is not initialised: start the program with "
            "torchrun --nproc-per-node N."
        )
    if not all(parameter.is_contiguous() for parameter in model.module.parameters()):
        raise UserError("FSDP divides only contiguous weights: leave out the memory format channels-last.")
    return Sharded(model, _blueprint(model), torch.device(model.device if device is None else device))


def whole(model: I2IModel) -> I2IModel:
    """Return a model that the first process can save: a :class:`Sharded` one gathered, any other unchanged.

    Every process must call it.
    """
    return model.whole() if isinstance(model, Sharded) else model


def undivided(model: I2IModel) -> Any:
    """Return the family's model in a :class:`Sharded` one, with its attributes; any other model unchanged."""
    return model.model if isinstance(model, Sharded) else model


def placed_like(model: I2IModel, other: I2IModel) -> I2IModel:
    """Move a whole model to where another model is: to its device, or divided among the processes."""
    if isinstance(other, Sharded):
        return shard(model, other.device)
    model.module.to(other.device)
    return model


def _blueprint(model: I2IModel) -> I2IModel:
    """Return a copy of a model whose parameters have no storage."""
    memo: dict[int, Any] = {
        id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.module.parameters()
    }
    return copy.deepcopy(model, memo)


def _divide(root: torch.nn.Module, device: torch.device) -> None:
    """Divide all parameters of a module in place; those without dimensions are kept in every process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    scalars = {parameter for parameter in root.parameters() if not parameter.dim()}
    for parameter in scalars:
        parameter.data = parameter.data if parameter.is_meta else parameter.data.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*_blocks(root), root):
        # Always reshard: between passes, the registered parameters must be the parts, which the optimizer changes.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    for method in ("encode", "decode"):
        register_fsdp_forward_method(root, method)


def _blocks(root: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the elements of all outermost lists of modules that share no parameter with the rest of the model."""
    uses = Counter(map(id, _parameters(root)))
    blocks = dict.fromkeys(block for block in _elements(root) if _parameters(block))
    return [block for block in blocks if all(n == uses[p] for p, n in Counter(map(id, _parameters(block))).items())]


def _elements(module: torch.nn.Module, inside: bool = False) -> Iterator[torch.nn.Module]:
    """Yield the elements of the outermost lists in a module, ``inside`` one or not; lists of lists are flattened."""
    is_list = isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential))
    if inside and not is_list and not isinstance(module, torch.nn.ModuleDict):
        yield module
        return
    for child in module.children():
        yield from _elements(child, inside or is_list)


def _parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of a module, shared ones as often as they are used."""
    return [parameter for _, parameter in module.named_parameters(remove_duplicate=False)]


@torch.no_grad()
def _copy_into(target: I2IModel, source: I2IModel, made: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Copy all parameters, as ``made`` returns them, and all buffers."""
    for parameter, part in zip(target.module.parameters(), source.module.parameters(), strict=True):
        distributed.assign(parameter, made(part))
    for buffer, value in zip(target.module.buffers(), source.module.buffers(), strict=True):
        buffer.copy_(value)
