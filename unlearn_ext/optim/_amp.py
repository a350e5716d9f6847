"""Support for torch.amp.GradScaler, which only unscales ``p.grad``, so ∇f1 is unscaled here."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from .._torch_internals import is_unscaled, multiply_foreach_, unscale_foreach_


def refuse_unscaled(optimizer: Optimizer, scaler: GradScaler) -> None:
    """Raise if ``scaler.unscale_(optimizer)`` already divided the gradients; torch also refuses a second call.

    Raises:
        RuntimeError: the gradients were unscaled before; the message says what to do instead.
    """
    if is_unscaled(scaler, optimizer):
        raise RuntimeError(
            "hold_constraint: scaler.unscale_(optimizer) was called before, and hold_constraint(value, scaler=scaler) "
            "would divide ∇c by the scale again; call unscale_ after it, for ∇f2, or not at all"
        )


@torch.no_grad()
def unscale_held_(params: list[Tensor], grads: list[Tensor | None], scaler: GradScaler) -> None:
    """Divide g1 by the scale, in place; if any value of it overflowed, leave a NaN for the scaler to find.

    The NaN is written to the ``.grad`` of the smallest parameter, to which ∇f2 will be added: ``scaler.step`` then
    skips the step and ``scaler.update`` lowers the scale, as for an overflow in ∇f2. Nothing synchronises.
    """
    mine = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
    if not mine:  # a later micro-batch may have no gradient at all
        return
    device = mine[0][1].device
    inverse = scaler.scale(torch.ones((), device=device)).double().reciprocal().float()
    overflow = torch.zeros((), device=device)
    for dtype in {g.dtype for _, g in mine}:
        same = [g for _, g in mine if g.dtype == dtype]
        unscale_foreach_(same, overflow, inverse)
    smallest = min((p for p, _ in mine), key=Tensor.numel)
    smallest.grad = torch.zeros_like(smallest) + torch.where(overflow > 0, torch.nan, 0.0).to(smallest.dtype)


def unscale_(grads: Sequence[Tensor | None], scale: Tensor) -> None:
    """Divide ∇f2 by the scale, in place and each tensor once, as ``GradScaler.unscale_`` would do."""
    present = list({id(g): g for g in grads if g is not None}.values())
    multiply_foreach_(present, scale.double().reciprocal().float().to(present[0].device))
