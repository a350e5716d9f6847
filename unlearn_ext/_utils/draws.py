"""Random numbers that depend only on an image and a salt, not on batch, order or process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

__all__ = ["generators", "normal"]


def generators(images: torch.Tensor, *salt: str | int) -> Iterator[torch.Generator]:
    """Yield a CPU generator for each of the images [N, C, H, W], seeded by its pixels and the salt."""
    key = repr(salt).encode()
    for image in images.detach().float().cpu():
        digest = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=7, key=key).digest()
        yield torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def normal(images: torch.Tensor, *salt: str | int, shape: torch.Size | None = None) -> torch.Tensor:
    """Return standard normal noise for images [N, C, H, W]: float32 [N, *shape] on the CPU, by default [N, C, H, W]."""
    shape = images.shape[1:] if shape is None else shape
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators(images, *salt)])
