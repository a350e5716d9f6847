"""The hole of an inpainting model: the pixels that the task hides."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..tasks import Corruption, Task

__all__ = ["hidden"]


def hidden(images: torch.Tensor, task: Corruption, family: str) -> torch.Tensor:
    """Return the mask of the hidden pixels, bool [N, 1, H, W].

    Args:
        images: float [N, C, H, W].
        task: the task T.
        family: name of the model's family, for the message.

    Raises:
        UserError: the task has no mask, or it hides no pixel of an image.
    """
    if not isinstance(task, Task):
        raise UserError(f"family {family} needs a task with a mask: use one of unlearn_ext.tasks.")
    hole = task.mask(images).expand(len(images), -1, -1, -1)
    if not hole.flatten(1).any(1).all():
        raise UserError(
            f"task {task} hides nothing, but family {family} only fills in hidden pixels: choose another task."
        )
    return hole
