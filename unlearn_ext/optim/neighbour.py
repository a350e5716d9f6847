"""Evaluation of a constraint at the worst neighbour of the parameters (SAM, Foret et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .._torch_internals import is_dtensor, local_shard
from . import _distributed

__all__ = ["sharpness"]


@contextmanager
def sharpness(params: Iterable[Tensor] | Tensor, rho: float) -> Iterator[None]:
    """Move the parameters to the worst neighbour θ + ρ·∇c/‖∇c‖ of radius ρ inside a ``with`` block.

    Call it when ``c.backward()`` has filled ``p.grad`` with ∇c. Inside, ``p.grad`` is ``None``: evaluate c again on the
    same batch and call ``backward()``. Leaving the block restores the parameters bit for bit, also if the block raises,
    and keeps the neighbour's ∇c in ``p.grad`` for ``hold_constraint``::

        f1(model).backward()
        with ux.sharpness(model.parameters(), rho=0.1):
            value = f1(model)
            value.backward()
        optimizer.hold_constraint(value)

    Held like this, ε is promised for the neighbour, and f1 itself is lower. If you hold the first f1 instead, with the
    neighbour's gradient, ε is promised for f1 itself.

    - No gradient, or one that is zero: the parameter is not moved. If ∇c has an infinity or a NaN, nothing is moved,
      and a NaN is added to the new gradient, so that the step is skipped and a ``GradScaler`` lowers its scale.
    - ``GradScaler``: scale both losses; the direction does not depend on the scale.
    - Accumulation: repeat inside the block every micro-batch that is accumulated in ``p.grad``.
    - Distributed training: enter when ∇c is averaged or reduced. ``DistributedDataParallel`` then moves every replica
      alike, and for DTensors the norm is that of the whole gradient.
    - The second forward pass also updates the running statistics of BatchNorm, and draws another dropout mask.
    - At the neighbour, parameters in half precision are rounded, and a displacement below their resolution is lost;
      prefer float32 parameters with autocast.

    It costs one more forward and backward pass of c, and a copy of the parameters. Nothing synchronises with the GPU.

    Args:
        params: the parameters that the optimizer trains, on one device; a tensor or an iterable of tensors.
        rho: ρ, the Euclidean distance of the neighbour over all parameters together, 0 or more; not relative to θ.

    Raises:
        ValueError: ``rho`` is negative or not finite.
        TypeError: ``params`` contains something else than tensors.
        RuntimeError: no parameter has a gradient, before the block or after it; or a gradient is sparse.
    """
    if not 0 <= rho < math.inf:
        raise ValueError(f"sharpness: rho={rho!r} must be a finite number, 0 or more")
    params = _distinct(params)
    moved = [p for p in params if p.grad is not None]
    if not moved:
        raise RuntimeError("sharpness: no parameter has a gradient; call backward() of the constraint first")
    grads = _distributed.local_shards([p.grad for p in moved if p.grad is not None], moved)
    if any(grad.layout is not torch.strided for grad in grads):
        raise RuntimeError("sharpness: sparse gradients are not supported, nor are they by the step")
    norm = _norm(moved, grads)
    for param in moved:
        param.grad = None
    with torch.no_grad():
        saved = [_local(param).clone() for param in moved]
    try:
        _move(moved, grads, rho, norm)
        del grads
        yield
    finally:
        _restore(moved, saved)
    _keep_overflow(params, norm)


def _distinct(params: Iterable[Tensor] | Tensor) -> list[Tensor]:
    params = [params] if isinstance(params, Tensor) else list(params)
    for param in params:
        if not isinstance(param, Tensor):
            raise TypeError(
                f"sharpness: params must be tensors, such as model.parameters(), not {type(param).__name__}"
            )
    return list({id(param): param for param in params}.values())


@torch.no_grad()
def _norm(params: list[Tensor], grads: list[Tensor]) -> Tensor:
    """Return ‖∇c‖ over all parameters and shards, 0-d; in float64, in which squares of float32 cannot overflow."""
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    return _distributed.total_norm(norms, params)


@torch.no_grad()
def _move(params: list[Tensor], grads: list[Tensor], rho: float, norm: Tensor) -> None:
    scale = rho / norm
    stays = ~(scale.float().isfinite() & norm.isfinite())
    for param, grad in zip(params, grads, strict=True):
        wide = torch.promote_types(grad.dtype, torch.float32)  # in float16, the scale of a scaled loss underflows
        _local(param).add_(grad.to(wide).mul(scale.to(wide)).masked_fill_(stays, 0))  # 0·∞ would be NaN
    _tell(params)


@torch.no_grad()
def _restore(params: list[Tensor], saved: list[Tensor]) -> None:
    for param, value in zip(params, saved, strict=True):
        _local(param).copy_(value)
    _tell(params)


def _tell(params: list[Tensor]) -> None:
    """Report that the parameters were written to autograd, which misses writes to shards, and to autocast's cache."""
    torch.autograd.graph.increment_version(params)
    torch.clear_autocast_cache()


@torch.no_grad()
def _keep_overflow(params: list[Tensor], norm: Tensor) -> None:
    """Add a NaN to the smallest new gradient if the first one was not finite."""
    grads = [param.grad for param in params if param.grad is not None]
    if not grads:
        raise RuntimeError("sharpness: no parameter has a gradient after the block; call backward() inside it")
    grad = _local(min(grads, key=Tensor.numel))
    grad.add_(torch.where(norm.isfinite(), 0.0, torch.nan).to(grad.dtype))


def _local(tensor: Tensor) -> Tensor:
    return local_shard(tensor) if is_dtensor(tensor) else tensor
