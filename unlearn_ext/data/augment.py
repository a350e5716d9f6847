"""Augmentation: small changes to a training image, drawn anew each time that it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .._utils.draws import generators
from ..errors import UserError

__all__ = ["KNOWN", "Augment", "flip", "generators", "parse", "shift"]

Augment = Callable[[torch.Tensor, int], torch.Tensor]


def flip(images: torch.Tensor, draw: int) -> torch.Tensor:
    """Every other image, by chance, is mirrored left to right.

    Args:
        images: float [N, C, H, W].
        draw: the same number gives the same choice.
    """
    chosen = [torch.rand((), generator=generator) < 0.5 for generator in generators(images, "flip", draw)]
    return torch.where(torch.stack(chosen)[:, None, None, None], images.flip(-1), images)


def shift(images: torch.Tensor, draw: int) -> torch.Tensor:
    """Every image is moved by up to an eighth of its side each way, its edge pixels repeated.

    Args:
        images: float [N, C, H, W].
        draw: the same number gives the same ways.
    """
    height, width = images.shape[-2:]
    most = (height // 8, width // 8)
    padded = F.pad(images, [most[1], most[1], most[0], most[0]], mode="replicate")
    moved = []
    for image, generator in zip(padded, generators(images, "shift", draw), strict=True):
        top, left = (int(torch.randint(2 * reach + 1, (), generator=generator)) for reach in most)
        moved.append(image[:, top : top + height, left : left + width])
    return torch.stack(moved)


KNOWN: dict[str, Augment] = {"flip": flip, "shift": shift}


def parse(names: Sequence[str]) -> Augment | None:
    """The augmentations of these names, one after the other; none for no name.

    Raises:
        UserError: there is none of that name.
    """
    for name in names:
        if name not in KNOWN:
            raise UserError(f"there is no augmentation `{name}`; known: {', '.join(KNOWN)}.")

    def augment(images: torch.Tensor, draw: int) -> torch.Tensor:
        for name in names:
            images = KNOWN[name](images, draw)
        return images

    return augment if names else None
