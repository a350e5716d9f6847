"""The hole: the pixels that a task hides, and how well a model fills them in."""

from __future__ import annotations

import torch

from ..tasks import Reconstruct, Task

__all__ = ["RANGE", "hole_of", "mean_over", "psnr_in_hole", "where"]

RANGE = 2.0  # of pixel values


def hole_of(images: torch.Tensor, task: Task) -> torch.Tensor:
    """Return the mask of the pixels that count for images [N, C, H, W], bool [N, 1, H, W]; all if none is hidden."""
    hidden = task.mask(images).expand(len(images), -1, -1, -1)
    return hidden if hidden.any() else ~hidden


def where(task: Task | str) -> str:
    """Return the words for the pixels that count, given a task or its name in ``metrics.json``."""
    return "over the whole image" if str(task) == Reconstruct.name else "in the hole"


def mean_over(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted means [N] of values [N, C, H, W], with weights [N, 1, H, W]."""
    weight = weight.expand_as(values).flatten(1).float()
    return (values.flatten(1) * weight).sum(1) / weight.sum(1)


def psnr_in_hole(original: torch.Tensor, generated: torch.Tensor, task: Task) -> torch.Tensor:
    """Return the PSNR in dB of each generated image over the hole only, float32 [N]; infinite if nothing differs.

    Args:
        original: float32 [N, C, H, W] in [-1, 1].
        generated: the images generated from them, likewise, in the same order.
        task: the task T; its mask is the hole.
    """
    error = mean_over((generated - original).square(), hole_of(original, task))
    return 10 * torch.log10(RANGE**2 / error)
