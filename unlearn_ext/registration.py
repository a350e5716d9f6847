"""Functions on tensors as operators of torch, which a compiler takes as they are."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P, T = ParamSpec("P"), TypeVar("T")

_library = torch.library.Library("unlearn_ext", "FRAGMENT")


def operator(*, mutates: Iterable[str] = ()) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function ``torch.ops.unlearn_ext.<its name>``, and its name a call of that.

    ``torch.library.custom_op`` does the same, but every call goes over all tensors in Python several times: 233 µs for
    600 of them, against 65. What it gives besides must be done here by whoever needs it: versions are counted by what
    writes, and a derivative through the operator is left out with a warning by torch, not refused.

    Args:
        mutates: names of the arguments that are written to.
    """

    def register(function: Callable[P, T]) -> Callable[P, T]:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=tuple(mutates))
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, torch.no_grad()(function), "CompositeExplicitAutograd")
        registered = getattr(torch.ops.unlearn_ext, name)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return registered(*args, **kwargs)

        return call

    return register
