"""Augmentation: small random changes to a training image, different each time the image is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .._utils.draws import generators
from ..errors import UserError

__all__ = ["KNOWN", "Augment", "flip", "generators", "parse", "shift"]

Augment = Callable[[torch.Tensor, int], torch.Tensor]


def flip(images: torch.Tensor, draw: int) -> torch.Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: float [N, C, H, W].
        draw: number of the draw; the same number and image give the same choice.
    """
    chosen = [torch.rand((), generator=generator) < 0.5 for generator in generators(images, "flip", draw)]
    return torch.where(torch.stack(chosen)[:, None, None, None], images.flip(-1), images)


def shift(images: torch.Tensor, draw: int) -> torch.Tensor:
    """Translate each image by up to an eighth of its height and width in each direction; repeat edge pixels.

    Args:
        images: float [N, C, H, W].
        draw: number of the draw; the same number and image give the same translation.
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
    """Return a function that applies the named augmentations in order; ``None`` if there are no names.

    Raises:
        UserError: a name is unknown.
    """
    for name in names:
        if name not in KNOWN:
            raise UserError(f"there is no augmentation `{name}`; known: {', '.join(KNOWN)}.")

    def augment(images: torch.Tensor, draw: int) -> torch.Tensor:
        for name in names:
            images = KNOWN[name](images, draw)
        return images

    return augment if names else None
