"""Storage of ∇f1 and f1 between the constraint's backward pass and the step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import repeat
from operator import is_, is_not

from torch import Tensor
from torch.amp import GradScaler

from .._torch_internals import version
from . import _distributed
from ._amp import unscale_held_
from ._ownership import is_grad_alone, owned


class HeldGradients:
    """f1 and ∇f1 from :meth:`hold` until the step has used them.

    Attributes:
        params: the parameters whose gradients are held; empty if nothing is held.
        grads: ∇f1 of each of them.
        value: f1, 0-d; ``None`` if nothing is held.
        scaled: whether a ``GradScaler`` scaled f1; ∇f1 itself is unscaled already.
        under_zero: whether ``ZeroRedundancyOptimizer`` made the optimizer on a part of the parameters.
    """

    params: list[Tensor]
    grads: list[Tensor | None]
    value: Tensor | None
    scaled: bool

    def __init__(self) -> None:
        self.under_zero = False
        self._consumed: tuple[weakref.ref[Tensor], int] | None = None
        self.release()

    def hold(self, value: Tensor, params: list[Tensor], scaler: GradScaler | None = None) -> None:
        """Move every ``p.grad`` to ∇f1; a second call before the step adds to it, as gradient accumulation does."""
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise ValueError(
                "hold_constraint: f1 must be a real tensor with one element, the loss whose backward() you called"
            )
        if self.under_zero:
            _distributed.refuse_zero()
        if _distributed.initialised():
            _distributed.refuse_fsdp1(params)
        grads = [p.grad for p in params]
        if self.value is None:
            if not any(map(is_not, grads, repeat(None))):
                raise RuntimeError("hold_constraint: no parameter has a gradient; call f1.backward() first")
            self._refuse_consumed(params, grads)
        before = self.of(params)
        for param in params:
            param.grad = None
        grads = owned(grads)
        if scaler is not None and scaler.is_enabled():
            unscale_held_(params, grads, scaler)
            self.scaled = True
        self.params, self.grads = params, grads if self.value is None else list(map(_added, before, grads))
        value = value.detach().reshape(()).resolve_neg()
        value = value.clone() if value.is_floating_point() else value.double()
        self.value = value if self.value is None else self.value + value

    def of(self, params: list[Tensor]) -> list[Tensor | None]:
        """Return ∇f1 of each parameter; ``None`` for parameters of a group that was added after :meth:`hold`."""
        if self.value is None:
            return [None] * len(params)
        if len(params) == len(self.params) and all(map(is_, params, self.params)):
            return self.grads
        mine = {id(p): g for p, g in zip(self.params, self.grads, strict=True) if g is not None}
        grads = [mine.pop(id(param), None) for param in params]
        if mine:
            raise RuntimeError(
                f"∇f1 is held for {len(mine)} parameter{'s' if len(mine) > 1 else ''} that no group has any more; "
                "change param_groups before hold_constraint, not between it and step()"
            )
        return grads

    def release(self) -> None:
        """Drop f1 and ∇f1."""
        self.params = []
        self.grads = []
        self.value = None
        self.scaled = False

    def restore(self, value: Tensor, params: list[Tensor], grads: list[Tensor | None]) -> None:
        """Hold the f1 and ∇f1 of a checkpoint."""
        self.value, self.params, self.grads = value, params, grads

    def consume(self, grads: Sequence[Tensor | None], held: Sequence[Tensor | None]) -> None:
        """Remember a gradient that a step used, to detect in :meth:`hold` that it was not zeroed."""
        both = (grad for grad, g1 in zip(grads, held, strict=True) if grad is not None and g1 is not None)
        witness = next(both, None)
        if witness is None:
            witness = next((grad for grad in grads if grad is not None), None)
        self._consumed = None if witness is None else (weakref.ref(witness), version(witness))

    def _refuse_consumed(self, params: list[Tensor], grads: list[Tensor | None]) -> None:
        """Raise if ``p.grad`` still contains the gradient that the last step used: ∇f2 would count as part of ∇f1.

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
                "hold_constraint: p.grad still has what the last step used, and f1.backward() added ∇f1 to it; call "
                "optimizer.zero_grad() before f1.backward()"
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_consumed": None}


def _added(held: Tensor | None, grad: Tensor | None) -> Tensor | None:
    if held is None or grad is None:
        return grad if held is None else held
    return held.add_(grad)
