"""Find the only tensor in the output of a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["described", "only_tensor"]


def only_tensor(output: Any) -> torch.Tensor | None:
    """Return the tensor in an output, or None if it is not obvious which tensor is meant.

    This is the output itself if it is a tensor; its mean if it is a distribution or another object with a tensor
    ``mean``; or the tensor in the only element of a tuple, list, dictionary or ``ModelOutput``.
    """
    if isinstance(output, torch.Tensor):
        return output
    named = output if isinstance(output, Mapping) else {}
    mean = named["mean"] if "mean" in named else _mean(output)
    if isinstance(mean, torch.Tensor):
        return mean
    if not isinstance(output, (Mapping, tuple, list)):
        return None
    parts = [part for part in (named.values() if named else output) if part is not None]
    return only_tensor(parts[0]) if len(parts) == 1 else None


def described(output: Any) -> str:
    """Return a description of an output for a message, such as ``a tuple of 2 (Tensor, Tensor)``."""
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {name} of {', '.join(map(str, output))}" if output else f"an empty {name}"
    if isinstance(output, (tuple, list)):
        return f"a {name} of {len(output)} ({', '.join(type(part).__name__ for part in output)})"
    return f"a {name}"


def _mean(output: Any) -> Any:
    """Return the mean of a distribution, or None if it has none."""
    try:
        return getattr(output, "mean", None)
    except NotImplementedError:
        return None
