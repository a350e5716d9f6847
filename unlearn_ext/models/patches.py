"""The patches of an image that a task leaves wholly visible."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..tasks import Corruption, Task

__all__ = ["visible_patches"]


def visible_patches(images: torch.Tensor, task: Corruption, size: int, patch_size: int, family: str) -> torch.Tensor:
    """Return the indices of the visible patches in row-major order, ascending, int64 [N, V].

    A patch is visible if the task hides none of its pixels.

    Args:
        images: float32 [N, C, S, S] in [-1, 1].
        task: the task T; its mask gives the hidden pixels.
        size: S, the side of the model's images in pixels.
        patch_size: side of a patch in pixels; divides S.
        family: name of the family, for messages.

    Raises:
        UserError: the images do not have the model's size, the task has no mask, no patch is visible, or the number of
            visible patches differs between images.
    """
    if tuple(images.shape[-2:]) != (size, size):
        height, width = images.shape[-2:]
        raise UserError(f"the model takes images of {size}x{size} pixels, not {height}x{width}.")
    if not isinstance(task, Task):
        raise UserError(f"family {family} needs a task with a mask: use one of unlearn_ext.tasks.")
    hidden = F.max_pool2d(task.mask(images).float(), patch_size).flatten(1)
    counts = (hidden == 0).sum(1)
    if counts.min() == 0:
        raise UserError(f"task {task} leaves no patch of the model wholly visible; hide less.")
    if counts.min() != counts.max():
        raise UserError(
            f"task {task} leaves more patches visible in one image than in another, but a masked autoencoder needs the "
            f"same number in each: use random-mask on the model's own grid, random-mask:F:{size // patch_size}."
        )
    visible = (hidden == 0).nonzero()[:, 1].view(len(hidden), -1)
    return visible.expand(len(images), -1)
