"""Data-parallel unlearning: the processes that torchrun starts, each on its share of every minibatch.

Gradients are averaged by one collective after the backward pass, not by ``DistributedDataParallel``: a model of any
family is an object with ``encode``, not a module with ``forward``, and DDP wants every parameter to be used in every
pass. What is lost is the overlap of that collective with the backward pass; what is won is that nothing is wrapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from .errors import UserError


def several() -> bool:
    """Whether this process has others beside it."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return not several() or dist.get_rank() == 0


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def refuse_several(command: str) -> None:
    """Raises ``UserError`` where torchrun started several processes for a command that would do everything in each."""
    if launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise UserError(f"`{command}` works in one process; under torchrun, use `run`, one ε at a time.")


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started with this one, if it did: gloo between CPUs, NCCL between GPUs.

    After an error nothing is tidied up, since others may be waiting for this process: it ends, and torchrun ends them.
    """
    if not launched():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield
    dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process does what is inside before the others do: they find in the cache what it left there."""
    if not is_first():
        dist.barrier()
    yield
    if several() and is_first():
        dist.barrier()


def agreed(value: float) -> float:
    """The first process's value: a decision that all must take alike cannot hang on the last bit of their own."""
    if not several():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def backward(
    loss: Callable[[torch.Tensor], torch.Tensor], index: torch.Tensor, parameters: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Adds to ``p.grad`` the gradient of the mean loss over a minibatch; each process computes it over its share.

    Args:
        loss: mean loss, 0-d, over the images at some indices.
        index: int64 [B], of the whole minibatch, the same in every process.
        parameters: without gradients yet, the same in every process.

    Returns:
        the mean loss over the whole minibatch, 0-d.

    Raises:
        UserError: there are more processes than images in the minibatch.
    """
    if not several():
        value = loss(index)
        value.backward()
        return value.detach()
    size = dist.get_world_size()
    if len(index) < size:
        raise UserError(f"a minibatch of {len(index)} images cannot be divided among {size} processes; start fewer.")
    mine = index.tensor_split(size)[dist.get_rank()]
    value = loss(mine) * (len(mine) * size / len(index))  # shares may differ by an image
    value.backward()
    return _average([p.grad for p in parameters if p.grad is not None], value.detach())


def _average(grads: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
    """Averages gradients in place, and a value, over all processes."""
    flat = torch.cat([*(grad.flatten() for grad in grads), value.reshape(1)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *parts, mean = flat.split([*(grad.numel() for grad in grads), 1])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return mean.reshape(())
