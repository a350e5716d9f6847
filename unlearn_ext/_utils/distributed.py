"""Data-parallel unlearning: each process that torchrun starts computes its share of every minibatch.

Gradients are averaged with one collective after the backward pass instead of ``DistributedDataParallel``, so models
need no wrapper. DDP needs a module with ``forward``, but a model here is an object with ``encode``; DDP also requires
that every pass uses every parameter. The disadvantage is that the collective does not overlap with the backward pass.

Parameters may also be DTensors, divided among all processes along their first dimension, see
:mod:`unlearn_ext.models.sharding`; FSDP averages their gradients itself.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .._torch_internals import is_dtensor, local_shard, placement_spec
from ..errors import UserError

__all__ = [
    "FirstFailed",
    "T",
    "any_says",
    "assign",
    "average",
    "first_alone",
    "from_first",
    "is_first",
    "joined",
    "largest_part",
    "launched",
    "local",
    "part",
    "several",
    "share",
    "total",
    "whole",
]

T = TypeVar("T")


def several() -> bool:
    """Return whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Return whether this is the first process, which writes all files and messages."""
    return not several() or dist.get_rank() == 0


def launched() -> bool:
    """Return whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group if torchrun started this process: gloo between CPUs, NCCL between GPUs.

    After an error, the group is not destroyed, because other processes may be waiting for this one. This process ends,
    and torchrun ends the others.
    """
    if not launched():
        yield
        return
    # Import before there is a group: the module would keep the group, whose threads would abort at exit.
    importlib.import_module("torch.distributed.nn.functional")

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield
    dist.barrier()  # no process closes connections that another still uses
    dist.destroy_process_group()


class FirstFailed(UserError):
    """Raised in the other processes if the first one failed; they need not report the error again."""


@contextmanager
def first_alone() -> Iterator[None]:
    """Run the body in the first process before the others, which then find its results in the cache.

    Raises:
        FirstFailed: in the other processes, if the first one raised an exception.
    """
    if not is_first():
        _from_first()
    try:
        yield
    except Exception as error:
        if several() and is_first():
            _to_others(None, error)
        raise
    if several() and is_first():
        _to_others(None)


def from_first(make: Callable[[], T]) -> T:
    """Call a function in the first process only, and return its result in every process.

    Raises:
        FirstFailed: in the other processes, if the first one raised an exception.
    """
    if not is_first():
        return _from_first()
    try:
        made = make()
    except Exception as error:
        if several():
            _to_others(None, error)
        raise
    if several():
        _to_others(made)
    return made


def _to_others(made: Any, error: Exception | None = None) -> None:
    """Send a result or an error to the other processes, which wait for one of them."""
    dist.broadcast_object_list([made, None if error is None else str(error)])


def _from_first() -> Any:
    box = [None, None]
    dist.broadcast_object_list(box)
    made, failure = box
    if failure is not None:
        raise FirstFailed(failure)
    return made


def part(index: torch.Tensor) -> torch.Tensor:
    """Return this process's part of ``index`` (int64 [B]); the sizes of parts differ by at most 1."""
    return index.tensor_split(dist.get_world_size())[dist.get_rank()] if several() else index


def largest_part(count: int) -> int:
    """Return the size of the largest part of ``count`` items."""
    return -(-count // dist.get_world_size()) if several() else count


def share(index: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return this process's part of a minibatch, and the weight of its mean loss in the mean over the minibatch.

    Raises:
        UserError: there are more processes than images in the minibatch.
    """
    if not several():
        return index, 1.0
    size, mine = dist.get_world_size(), part(index)
    if len(index) < size:
        raise UserError(f"a minibatch of {len(index)} images cannot be divided among {size} processes; start fewer.")
    return mine, len(mine) * size / len(index)


def total(value: float) -> float:
    """Return the sum over all processes, bit-identical in each, so that decisions based on it agree."""
    if not several():
        return value
    box = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(box)
    return box.item()


def any_says(yes: bool) -> bool:
    """Return whether any process says yes, the same in all of them."""
    return total(float(yes)) > 0


def average(value: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average a loss, and ``p.grad`` of plain parameters in place, over all processes.

    Args:
        value: loss of this process, 0-d, multiplied by the weight from :func:`share`.
        parameters: the same parameters in every process; each has a gradient in all processes or in none.

    Returns:
        The mean loss, 0-d.
    """
    if not several():
        return value
    grads = [p.grad for p in parameters if p.grad is not None and not is_dtensor(p)]
    flat = torch.cat([*(grad.flatten() for grad in grads), value.reshape(1)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *parts, mean = flat.split([*(grad.numel() for grad in grads), 1])
    for grad, averaged in zip(grads, parts, strict=True):
        grad.copy_(averaged.view_as(grad))
    return mean.reshape(())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a DTensor's whole tensor, gathered by all processes together; a plain tensor is returned unchanged."""
    if not is_dtensor(tensor):
        return tensor.detach()
    part: Any = tensor.detach().to(placement_spec(tensor).mesh.device_type)  # copies of parameters are on the CPU
    return part.full_tensor()


def local(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor that is divided like a parameter.

    Args:
        value: a DTensor that is divided already, or the whole tensor.
        like: the parameter; if it is a plain tensor, ``value`` is returned unchanged.
    """
    if not is_dtensor(like):
        return value
    if is_dtensor(value):
        return local_shard(value)
    mesh = placement_spec(like).mesh
    parts, rank = value.chunk(mesh.size()), mesh.get_local_rank()  # as FSDP divides
    return parts[rank] if rank < len(parts) else value[:0]


@torch.no_grad()
def assign(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Set a parameter to a value; each of both may be a plain tensor, or a DTensor, see :func:`local`."""
    local(parameter, parameter).copy_(local(value, parameter))
