"""SHA-256 of tensors."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["tensors_sha256"]


def tensors_sha256(*tensors: torch.Tensor) -> str:
    """Return the beginning of the SHA-256 of tensors with their dtypes and shapes: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
