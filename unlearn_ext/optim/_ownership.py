"""Detect gradients whose memory other code can write to.

A gradient that is held from ``hold_constraint`` until the step must not change in between, so a shared one is copied.
"""

from __future__ import annotations

from sys import getrefcount

import torch
from torch import Tensor, nn

from .._torch_internals import is_view, use_count

_ALONE = next(map(getrefcount, [object()]))  # reference count, inside map(), of an object that only one list refers to


def owned(grads: list[Tensor | None]) -> list[Tensor | None]:
    """Copy the gradients that other code may still write to; return the others without a copy.

    Other code may refer to the tensor itself (a buffer that is ``p.grad`` of several parameters or losses) or to a view
    of it, or the tensor may be a view: of a DDP bucket, of a flat buffer, of one expanded element. A gradient that the
    backward pass allocated is not shared.

    Args:
        grads: gradients that are no longer any parameter's ``.grad``.
    """
    references = list(map(getrefcount, grads))  # before a local name adds a reference
    return [
        grad.clone() if grad is not None and (count > _ALONE or _is_shared(grad)) else grad
        for grad, count in zip(grads, references, strict=True)
    ]


def clear(params: list[Tensor]) -> None:
    """Set every ``p.grad`` to ``None``."""
    for param in params:
        param.grad = None


def set_aside(params: list[Tensor]) -> list[Tensor | None]:
    """Set every ``p.grad`` to ``None``; return the gradients, copied where other code may write to them."""
    grads = [param.grad for param in params]
    clear(params)
    return owned(grads)


def restore(params: list[Tensor], grads: list[Tensor | None]) -> None:
    """Put back the gradients that :func:`set_aside` returned, and add to them what ``p.grad`` is by now."""
    for param, grad in zip(params, grads, strict=True):
        if grad is not None:
            param.grad = grad if param.grad is None else grad.add_(param.grad)


def is_grad_alone(param: Tensor, known: int) -> bool:
    """Return whether only the parameter and the caller refer to ``param.grad``.

    If other code refers to it, such as a buffer that is refilled for each backward pass, the same tensor may contain a
    new gradient.

    Args:
        param: a parameter with a gradient.
        known: number of references to the gradient that the caller has.
    """
    return getrefcount(param.grad) <= _OF_A_PARAMETER + known and not _is_shared(param.grad, owners=2)  # type: ignore[arg-type]


def _is_shared(grad: Tensor, owners: int = 1) -> bool:
    if use_count(grad) > owners:  # a view keeps its base alive
        return True
    if type(grad) is not Tensor or grad.layout is not torch.strided:  # a DTensor gradient always has new memory
        return False
    # A view of a whole buffer is as large as its storage, so only torch's view flag reveals it.
    return is_view(grad) or grad.untyped_storage().nbytes() > grad.nbytes


def _references_to_a_gradient() -> int:
    """Return the reference count in :func:`is_grad_alone` of a gradient that only its parameter refers to."""
    param = nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    return getrefcount(param.grad)


_OF_A_PARAMETER = _references_to_a_gradient()
