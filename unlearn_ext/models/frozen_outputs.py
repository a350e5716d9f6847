"""Outputs of a frozen network, computed once for each input."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import torch

__all__ = ["LIMIT", "FrozenOutputs"]

LIMIT = 2**30  # bytes; 8,000 latents of 512-pixel images, whole and masked

T = TypeVar("T")


class FrozenOutputs(Generic[T]):
    """A function of single inputs that remembers its outputs, on the CPU, up to ``LIMIT`` bytes.

    Each input is computed alone, so its output does not depend on the others in a minibatch. The first outputs are kept
    and never replaced: every image is used once per epoch, so replacing the oldest would remove what is needed next.

    Args:
        compute: the function; returns tensors without a batch dimension.
        key: returns what identifies an input.
    """

    def __init__(self, compute: Callable[[T], tuple[torch.Tensor, ...]], key: Callable[[T], Hashable]) -> None:
        self._compute, self._key = compute, key
        self._kept: dict[Hashable, tuple[torch.Tensor, ...]] = {}
        self._bytes = 0

    def __call__(self, inputs: Iterable[T]) -> tuple[torch.Tensor, ...]:
        """Return the outputs of several inputs, stacked: tensors [N, ...] on the CPU."""
        outputs = [self._one(each) for each in inputs]
        return tuple(torch.stack(part) for part in zip(*outputs, strict=True))

    def _one(self, given: T) -> tuple[torch.Tensor, ...]:
        key = self._key(given)
        if key in self._kept:
            return self._kept[key]
        with torch.no_grad():
            output = tuple(part.cpu() for part in self._compute(given))
        size = sum(part.nbytes for part in output)
        if self._bytes + size <= LIMIT:
            self._kept[key], self._bytes = output, self._bytes + size
        return output
