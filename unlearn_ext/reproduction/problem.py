"""The problem that all methods are given: one family's model and images under one seed."""

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
    """What all methods are given; ``f1`` is that of the unmodified model over all training images to forget."""

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
    """The problem of a trial."""
    model, images = demo.prepare(family, progress, seed=seed, task=task, share=share)
    model = on_device(device, model)
    training = Objectives.freeze(model, images.forget, images.retain, task, settings=settings)
    validation = training.held_out(images.forget_validation, images.retain_validation)
    return Problem(model, images, training, validation, training.evaluate_f1(training.frozen))


def on_device(device: torch.device, model: I2IModel) -> I2IModel:
    model.module.to(device)
    return model
