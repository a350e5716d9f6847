"""SHA-256 of tensors."""

from __future__ import annotations

import hashlib

import torch

from .distributed import whole

__all__ = ["tensors_sha256"]


def tensors_sha256(*tensors: torch.Tensor) -> str:
    """Return the beginning of the SHA-256 of tensors with their dtypes and shapes: 16 hexadecimal digits.

    Every process must ask for that of DTensors, which are gathered one after the other.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(whole(tensor).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
