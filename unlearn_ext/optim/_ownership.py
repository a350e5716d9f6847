"""Detect gradients whose memory other code can write to.

A gradient that is held from ``hold_constraint`` until the step must not change in between, so a shared one is copied.
"""

from __future__ import annotations

from sys import getrefcount

import torch
from torch import Tensor, nn

_ALONE = next(map(getrefcount, [object()]))  # references to an object that one list holds, as map() passes it


def owned(grads: list[Tensor | None]) -> list[Tensor | None]:
    """Copy those gradients that somebody else may still write to; the others are taken as they are.

    Others may have the tensor itself (a buffer that is ``p.grad`` of several parameters, or of several losses), a view
    of it, or it may be a view: of a bucket of DDP's, of a flat buffer, of one element that was expanded. A gradient
    that the backward pass made belongs to nobody else.

    Args:
        grads: gradients that are no parameter's ``.grad`` any more.
    """
    references = list(map(getrefcount, grads))  # before a name of ours adds one
    return [
        grad.clone() if grad is not None and (count > _ALONE or _is_shared(grad)) else grad
        for grad, count in zip(grads, references, strict=True)
    ]


def is_grad_alone(param: Tensor, known: int) -> bool:
    """Return whether only the parameter and the caller refer to ``param.grad``.

    If other code refers to it, such as the owner of a buffer that is filled again for each backward pass, then the same
    tensor may hold another gradient.

    Args:
        param: a parameter with a gradient.
        known: number of references to the gradient that the caller has.
    """
    return getrefcount(param.grad) <= _OF_A_PARAMETER + known and not _is_shared(param.grad, owners=2)  # type: ignore[arg-type]


def _is_shared(grad: Tensor, owners: int = 1) -> bool:
    if grad._use_count() > owners:  # type: ignore[attr-defined]  # a view keeps its base alive
        return True
    if type(grad) is not Tensor or grad.layout is not torch.strided:  # a DTensor's has memory of its own every time
        return False
    # A view that fills its buffer alone is as large as its storage: then only torch's own note gives it away.
    return grad._is_view() or grad.untyped_storage().nbytes() > grad.nbytes


def _references_to_a_gradient() -> int:
    """Count what :func:`is_grad_alone` counts where there is nobody else."""
    param = nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    return getrefcount(param.grad)


_OF_A_PARAMETER = _references_to_a_gradient()
