"""Say whether a model can do its task on some images, beside one colour in place of what is hidden."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .terminal import out

if TYPE_CHECKING:
    import torch

    from ..models import I2IModel
    from ..tasks import Task

__all__ = ["say_ability"]


def say_ability(model: I2IModel, task: Task, sets: Mapping[str, torch.Tensor], remedy: str) -> None:
    """Print a line with the PSNR in the hole of each set; warn if the model is not clearly better than one colour.

    Args:
        model: the model.
        task: the task T.
        sets: images by the words for them, such as ``"images to forget"``; empty sets are left out.
        remedy: the end of the warning, what it means or what to do.
    """
    from ..unlearning.ability import ability
    from ..unlearning.hole import where

    able = {name: ability(model, images, task) for name, images in sets.items() if len(images)}
    said = [f"{name} {a.psnr:.1f} dB (one colour {a.fill:.1f} dB; {a.images} images)" for name, a in able.items()]
    out.print(f"PSNR {where(task)}: {', '.join(said)}", soft_wrap=True)
    poor = [name for name, a in able.items() if not a.is_clear]
    if poor:
        warnings.warn(
            f"the model is hardly better than one colour {where(task)}, for the {' and the '.join(poor)}: {remedy}.",
            stacklevel=2,
        )
