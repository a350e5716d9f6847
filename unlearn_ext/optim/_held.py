"""Storage of c and ∇c between the constraint's backward pass and the step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import is_, is_not

import torch
from torch import Tensor
from torch.amp import GradScaler

from .._torch_internals import version
from . import _distributed
from ._amp import unscale_held_
from ._ownership import clear, is_grad_alone, owned


@dataclass
class Held:
    """One constraint from ``hold_constraint`` to the step.

    Attributes:
        value: c, 0-d.
        params: the parameters whose gradients are held.
        grads: ∇c of each of them.
        scaled: whether a ``GradScaler`` scaled c; ∇c itself is unscaled already.
    """

    value: Tensor
    params: list[Tensor]
    grads: list[Tensor | None]
    scaled: bool = False


class HeldGradients:
    """c and ∇c of every constraint from :meth:`hold` until the step has used them.

    Attributes:
        by_name: what is held, by the constraint's name; empty if nothing is.
        dtype: the dtype in which gradients are held; ``None``: their own.
        under_zero: whether ``ZeroRedundancyOptimizer`` made the optimizer on a part of the parameters.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.under_zero = False
        self.dtype = dtype
        self.by_name: dict[str, Held] = {}
        self._consumed: tuple[weakref.ref[Tensor], int] | None = None

    @property
    def names(self) -> list[str]:
        """The constraints that are held, sorted, so that the order of the calls changes no bit of the step."""
        return sorted(self.by_name)

    def value_of(self, name: str) -> Tensor:
        """Return c of a constraint that is held."""
        return self.by_name[name].value

    def hold(self, value: Tensor, name: str, params: list[Tensor], scaler: GradScaler | None = None) -> None:
        """Move every ``p.grad`` to ∇c; a second call before the step adds to it, as gradient accumulation does."""
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise ValueError(
                "hold_constraint: the value must be a real tensor with one element, the loss whose backward() you "
                "called, or the true quantity whose surrogate it is"
            )
        if self.under_zero:
            _distributed.refuse_zero()
        if _distributed.initialised():
            _distributed.refuse_fsdp1(params)
        grads, earlier = [p.grad for p in params], self.by_name.get(name)
        if earlier is None and not any(map(is_not, grads, repeat(None))):
            raise RuntimeError("hold_constraint: no parameter has a gradient; call backward() of the constraint first")
        if not self.by_name:
            self._refuse_consumed(params, grads)
        before = self.of(name, params)
        clear(params)
        grads = owned(grads)
        scaled = scaler is not None and scaler.is_enabled()
        if scaler is not None and scaled:
            unscale_held_(params, grads, scaler)
        if self.dtype is not None:
            grads = [None if grad is None else grad.to(self.dtype) for grad in grads]
        value = value.detach().reshape(()).resolve_neg()
        value = value.clone() if value.is_floating_point() else value.double()
        if earlier is not None:
            grads, value = list(map(_added, before, grads)), earlier.value + value
            scaled = scaled or earlier.scaled
        self.by_name[name] = Held(value, params, grads, scaled)

    def of(self, name: str, params: list[Tensor]) -> list[Tensor | None]:
        """Return ∇c of each parameter; ``None`` for parameters of a group that was added after :meth:`hold`."""
        held = self.by_name.get(name)
        if held is None:
            return [None] * len(params)
        if len(params) == len(held.params) and all(map(is_, params, held.params)):
            return held.grads
        mine = {id(p): g for p, g in zip(held.params, held.grads, strict=True) if g is not None}
        grads = [mine.pop(id(param), None) for param in params]
        if mine:
            raise RuntimeError(
                f"∇c is held for {len(mine)} parameter{'s' if len(mine) > 1 else ''} that no group has any more; "
                "change param_groups before hold_constraint, not between it and step()"
            )
        return grads

    @torch.no_grad()
    def put_back(self, name: str, params: list[Tensor], scaler: GradScaler | None) -> None:
        """Make ∇c, as held so far, ``p.grad`` again, with the scaler's scale; the next :meth:`hold` takes the sum.

        The value is kept.
        """
        held = self.by_name.get(name)
        if held is None:
            return
        scale = scaler.scale(torch.ones((), device=params[0].device)) if scaler is not None and held.scaled else 1.0
        for param, grad in zip(params, self.of(name, params), strict=True):
            param.grad = None if grad is None else (grad * scale).to(param.dtype)
        self.by_name[name] = Held(held.value, params, [None] * len(params), held.scaled)

    def release(self) -> None:
        """Drop every c and ∇c."""
        self.by_name = {}

    def restore(self, held: HeldGradients) -> None:
        """Hold what a checkpoint has."""
        self.by_name = held.by_name

    def consume(self, grads: Sequence[Tensor | None], held: Sequence[Sequence[Tensor | None]]) -> None:
        """Remember a gradient that a step used, to detect in :meth:`hold` that it was not zeroed."""
        pairs = chain.from_iterable(zip(grads, column, strict=True) for column in held)
        witness = next((grad for grad, held_grad in pairs if grad is not None and held_grad is not None), None)
        if witness is None:
            witness = next((grad for grad in grads if grad is not None), None)
        self._consumed = None if witness is None else (weakref.ref(witness), version(witness))

    def _refuse_consumed(self, params: list[Tensor], grads: list[Tensor | None]) -> None:
        """Raise if ``p.grad`` still contains the gradient that the last step used: ∇f2 would count as part of ∇c.

        The version counter tells: a backward pass writes to ``p.grad`` once, zeroing and a backward pass twice.
        """
        witness, known = self._consumed or (lambda: None, 0)
        grad = witness()
        row = None if grad is None else next((row for row, g in enumerate(grads) if g is grad), None)
        if grad is None or row is None or not is_grad_alone(params[row], known=2):  # grads and grad refer to it
            return
        writes = version(grad) - known
        plain = type(grad) is Tensor  # a DTensor counts no in-place write: they go to its local tensor
        if writes == 0 or (plain and writes == 1 and bool(grad.any())):
            raise RuntimeError(
                "hold_constraint: p.grad still has what the last step used, and the constraint's backward() added ∇c "
                "to it; call optimizer.zero_grad() before that backward()"
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_consumed": None}


def _added(held: Tensor | None, grad: Tensor | None) -> Tensor | None:
    if held is None or grad is None:
        return grad if held is None else held
    return held.add_(grad)
