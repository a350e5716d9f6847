"""Functions on tensors as operators of torch, which a compiler takes as they are."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["P", "T", "fake", "operator"]

P = ParamSpec("P")
T = TypeVar("T")

_library = torch.library.Library("unlearn_ext", "FRAGMENT")


def operator(*, mutates: Iterable[str] = ()) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function ``torch.ops.unlearn_ext.<its name>``, and its name a call of that; a derivative it has none.

    ``torch.library.custom_op`` does the same, but every call goes over all tensors in Python several times: 233 µs for
    600 of them, against 65, or 92 where something is returned. Versions are counted by what writes, not here.

    Args:
        mutates: names of the arguments that are written to.
    """

    def register(function: Callable[P, T]) -> Callable[P, T]:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=tuple(mutates))
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, torch.no_grad()(function), "CompositeExplicitAutograd")
        registered: Callable[P, T] = getattr(torch.ops.unlearn_ext, name)
        if not schema.endswith("-> ()"):
            _library.impl(name, _without_derivative(registered), "Autograd")

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return registered(*args, **kwargs)

        return call

    return register


def fake(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function what the operator ``name`` does where tensors have shapes but no values."""
    register: Callable[[Callable[P, T]], Callable[P, T]] = torch.library.register_fake(f"unlearn_ext::{name}")
    return register


def _without_derivative(registered: Callable[..., T]) -> Callable[..., T]:
    def call(*args: Any) -> T:
        with torch._C._AutoDispatchBelowAutograd():
            result = registered(*args)
        if torch.is_grad_enabled():
            tensors = (t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor))
            if needed := [tensor for tensor in tensors if tensor.requires_grad]:
                result = _NoDerivative.apply(str(registered), result, *needed)  # type: ignore[no-untyped-call]
        return result

    return call


class _NoDerivative(torch.autograd.Function):
    """The identity, whose backward pass raises ``RuntimeError``."""

    @staticmethod
    def forward(ctx: Any, name: str, value: Tensor, *needed: Tensor) -> Tensor:
        ctx.name = name
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError(f"{ctx.name} has no derivative; detach what it is given, or call it under torch.no_grad()")
