"""The problem that all methods solve: one family's model and images for one seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from .. import data, demo
from ..models import I2IModel
from ..tasks import Task
from ..unlearning.objectives import Objectives
from ..unlearning.progress import Callback
from ..unlearning.settings import Settings

__all__ = ["Problem", "on_device", "posed"]


@dataclass(frozen=True)
class Problem:
    """The input of all methods.

    Attributes:
        model: the unmodified model.
        images: forget and retain images, for training and validation.
        training: objectives over training images.
        validation: objectives over validation images.
        f1: f1 of the unmodified model over all training images to forget.
    """

    model: I2IModel
    images: data.ForgetRetain
    training: Objectives
    validation: Objectives
    f1: float


@lru_cache(maxsize=1)
def posed(
    family: str,
    seed: int,
    task: Task,
    settings: Settings,
    share: float,
    progress: Callback | None,
    device: torch.device,
) -> Problem:
    """Build the problem of a trial; the last one is cached."""
    model, images = demo.prepare(family, progress, seed=seed, task=task, share=share)
    model = on_device(device, model)
    training = Objectives.freeze(model, images.forget, images.retain, task, settings=settings)
    validation = training.held_out(images.forget_validation, images.retain_validation)
    return Problem(model, images, training, validation, training.evaluate_f1(training.frozen))


def on_device(device: torch.device, model: I2IModel) -> I2IModel:
    """Move a model to a device in place and return it."""
    model.module.to(device)
    return model
