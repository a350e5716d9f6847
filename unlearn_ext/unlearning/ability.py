"""Whether a model can do its task on some images at all; if not, unlearning them cannot show anything."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..models import I2IModel, reconstruct
from ..tasks import Task
from .batches import pixels
from .hole import hole_of, psnr_in_hole

__all__ = ["CLEAR", "Ability", "ability"]

CLEAR = 1.0  # dB above the fill, a fifth less squared error
MOST = 64  # images
SECONDS = 5.0


@dataclass(frozen=True)
class Ability:
    """How well a model fills in the hole of some images.

    Attributes:
        psnr: PSNR over the hole in dB, the mean over the images.
        fill: the same, if the hole is filled with the mean colour of these holes, the best single colour.
        images: number of images.
    """

    psnr: float
    fill: float
    images: int

    @property
    def is_clear(self) -> bool:
        """Whether the model is better than one colour by at least ``CLEAR``."""
        return self.psnr >= self.fill + CLEAR


def ability(model: I2IModel, images: torch.Tensor, task: Task) -> Ability:
    """Measure how well a model fills in the hole of the first images of a set.

    The number of images doubles until there are ``MOST``, or until the next ones would take longer than ``SECONDS``:
    large models, and diffusion models, are measured on fewer.

    Args:
        model: a model of any family.
        images: uint8 [N, C, H, W], or float32 in [-1, 1]; at least one.
        task: the task T.
    """
    images, made, start = pixels(images[:MOST]), list[torch.Tensor](), time.monotonic()
    taken, more = 0, 1
    while taken < len(images):
        made.append(reconstruct(model, images[taken : taken + more], task))
        taken, more = taken + len(made[-1]), 2 * more
        spent = time.monotonic() - start
        if spent + more * spent / taken > SECONDS:
            break
    images = images[:taken]
    filled = hole_of(images, task) * _mean_colour(images, task)
    both = (torch.cat(made), filled.expand_as(images))
    psnr, fill = (psnr_in_hole(images, other, task).clamp(max=100).mean().item() for other in both)
    return Ability(psnr, fill, taken)


def _mean_colour(images: torch.Tensor, task: Task) -> torch.Tensor:
    """Return the mean colour of the holes of images [N, C, H, W], [1, C, 1, 1]."""
    hole = hole_of(images, task)
    return ((images * hole).sum((0, 2, 3)) / hole.sum()).view(1, -1, 1, 1)
