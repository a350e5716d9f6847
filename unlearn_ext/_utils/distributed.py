"""Data-parallel unlearning: the processes that torchrun starts, each on its share of every minibatch.

Gradients are averaged by one collective after the backward pass, not by ``DistributedDataParallel``: a model of any
family is an object with ``encode``, not a module with ``forward``, and DDP wants every parameter to be used in every
pass. What is lost is the overlap of that collective with the backward pass; what is won is that nothing is wrapped.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import UserError

__all__ = [
    "FirstFailed",
    "T",
    "average",
    "first_alone",
    "from_first",
    "is_first",
    "joined",
    "launched",
    "part",
    "several",
    "share",
    "total",
]

T = TypeVar("T")


def several() -> bool:
    """Whether this process has others beside it."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return not several() or dist.get_rank() == 0


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started with this one, if it did: gloo between CPUs, NCCL between GPUs.

    After an error nothing is tidied up, since others may be waiting for this process: it ends, and torchrun ends them.
    """
    if not launched():
        yield
        return
    # It keeps the group it finds when imported, as a default argument: threads would still run at exit, and abort.
    importlib.import_module("torch.distributed.nn.functional")

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield
    dist.barrier()  # they leave together: none tears connections down that another still uses
    dist.destroy_process_group()


class FirstFailed(UserError):
    """What the first process raised, in the others, which need not say it again."""


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process do what is inside before the others do: they find in the cache what it left there.

    Raises:
        FirstFailed: in the others, where the first raised an exception.
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
    """Return what the first process makes, in every process.

    Raises:
        FirstFailed: in the others, where the first raised an exception.
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
    """Send what the first process made, or why it did not: without a word, the others would wait for ever."""
    dist.broadcast_object_list([made, None if error is None else str(error)])


def _from_first() -> Any:
    box = [None, None]
    dist.broadcast_object_list(box)
    made, failure = box
    if failure is not None:
        raise FirstFailed(failure)
    return made


def part(index: torch.Tensor) -> torch.Tensor:
    """This process's part of the images at ``index`` (int64 [B]); of several, parts may differ by an image."""
    return index.tensor_split(dist.get_world_size())[dist.get_rank()] if several() else index


def share(index: torch.Tensor) -> tuple[torch.Tensor, float]:
    """This process's part of a minibatch, and the weight that its mean loss has in the mean over the whole.

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
    """The sum over all processes, to the same bits in each: a decision taken on it cannot part them."""
    if not several():
        return value
    box = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(box)
    return box.item()


def average(value: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Averages ``p.grad`` over all processes in place, and a loss.

    Args:
        value: loss, 0-d, times the weight of this process's share.
        parameters: the same in every process; those without a gradient have none in any.

    Returns:
        the mean loss, 0-d.
    """
    if not several():
        return value
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(grad.flatten() for grad in grads), value.reshape(1)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *parts, mean = flat.split([*(grad.numel() for grad in grads), 1])
    for grad, averaged in zip(grads, parts, strict=True):
        grad.copy_(averaged.view_as(grad))
    return mean.reshape(())
