"""Checks of the arguments of a run, before any work begins."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UserError
from ..models import I2IModel
from ..models.freezing import check_float32

__all__ = ["check_images", "check_model", "check_task"]

_SLACK = 0.1  # tolerance for pixels outside [-1, 1]: sharp resampling filters overshoot


def check_model(model: I2IModel) -> None:
    """Check that a model can be trained.

    Raises:
        UserError: it does not belong to a family of ``unlearn_ext.models``, or its weights are not float32.
    """
    if not hasattr(model, "encoder_parameters"):
        raise UserError(
            f"the model is a {type(model).__name__}; wrap it in the class of its family in unlearn_ext.models."
        )
    check_float32(model.module)


def check_task(task: Any) -> None:
    """Raise ``UserError`` if the task is not callable."""
    if not callable(task):
        raise UserError(f"the task is {task!r}; give one of unlearn_ext.tasks, such as CenterCrop(0.5).")


def check_images(name: str, images: Any, model: I2IModel) -> None:
    """Raise ``UserError`` if a value is not a tensor of images for the model.

    Args:
        name: name of the set, for the message.
        images: uint8 [N, C, H, W], or float32 in [-1, 1].
        model: the model for which the images are meant.
    """
    if not isinstance(images, torch.Tensor):
        raise UserError(f"the {name} images are a {type(images).__name__}; give a tensor [N, C, H, W].")
    if images.dtype not in (torch.uint8, torch.float32):
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(f"the {name} images are {kind}; give uint8, or float32 in [-1, 1].")
    if images.dim() != 4:
        raise UserError(f"the {name} images have the shape {list(images.shape)}; it must be [N, C, H, W].")
    if not images.numel():
        raise UserError(f"there are no {name} images: their shape is {list(images.shape)}.")
    if images.shape[1] != model.channels:
        raise UserError(
            f"the model takes images of {model.channels} channels; the {name} images have {images.shape[1]}."
        )
    if images.dtype == torch.float32:
        low, high = (value.item() for value in images.aminmax())
        if not -1 - _SLACK <= low <= high <= 1 + _SLACK:
            raise UserError(f"the {name} images range from {low:.4g} to {high:.4g}; float images must be in [-1, 1].")
