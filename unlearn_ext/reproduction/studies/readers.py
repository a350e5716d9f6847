"""What can be seen and read of the forgotten: by the decoder, and by a linear reader of the latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ... import demo
from ...errors import require
from ...models import CHUNK, I2IModel, reconstruct
from ...tasks import Task
from ...unlearning.batches import pixels
from ...unlearning.encoder import Encoder
from ...unlearning.pareto import EPSILON
from ..table import RETRAINED, UNMODIFIED
from ..trial import Trial
from .study import Answer, OnStudyStep, Part, Study

__all__ = ["PENALTIES", "Readable", "Readers", "hole_error", "linear_reading"]

PENALTIES = np.logspace(-4, 2, 7)  # of the ridge regression, in mean squares of the latents; leave-one-out chooses


@dataclass(frozen=True)
class Readable(Answer):
    """Mean squared errors in the hole, of pixels in [-1, 1], of one model over validation images.

    Attributes:
        point: an anchor of our front, ``"unmodified"``, or ``"retrained"``.
        decoder_forget: of what the model's decoder makes of images to forget; the decoder of ours is that of the
            unmodified model. NaN where pictures are sampled step by step, which takes minutes.
        decoder_retain: of images to retain, likewise.
        reader_forget: of what a ridge regression from the latents to the hole makes of images to forget; it was fitted
            on training images to forget.
        mean_forget: of the mean of these training images, which needs no latents: what nothing to read looks like.
    """

    point: str
    decoder_forget: float
    decoder_retain: float
    reader_forget: float
    mean_forget: float

    @property
    def part(self) -> Part:
        return (self.point,)


@dataclass(frozen=True)
class Readers(Study):
    """f1 is a distance of latents: it says neither what the frozen decoder shows nor what another decoder could. All
    images are used, of which a sweep may have seen a share.
    """

    name: ClassVar[str] = "readers"
    row: ClassVar[type[Readable]] = Readable

    def parts(self, trial: Trial) -> Sequence[Part]:
        anchors = (point.name for point in trial.points() if point.role != EPSILON)
        return [(name,) for name in (UNMODIFIED, RETRAINED, *anchors)]

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Readable]:
        (point,) = part
        model, task = trial.model(point), trial.task
        _, images = demo.prepare(trial.family, trial.progress, seed=trial.seed, task=task, share=1.0)
        fitted, asked = images.forget, images.forget_validation
        latents = (_latents(Encoder(model, trial.settings), model, part, task) for part in (fitted, asked))
        read = linear_reading(*latents, _hole(fitted, task), _hole(asked, task))
        blind = np.square(_hole(fitted, task).mean(0) - _hole(asked, task)).mean()
        shown = [math.nan] * 2
        if not model.random:
            shown = [hole_error(model, part, task) for part in (asked, images.retain_validation)]
        return [Readable(trial.family, point, *shown, read, float(blind))]


def linear_reading(fitted: np.ndarray, asked: np.ndarray, fitted_to: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean squared error of a ridge regression with an intercept.

    Args:
        fitted: latents to fit on, float64 [N, D].
        asked: latents to read, [M, D].
        fitted_to: what goes with the first, [N, P].
        truth: what goes with the others, [M, P].
    """
    require("sklearn", "report")
    from sklearn.linear_model import RidgeCV

    centre = fitted.mean(0)
    scale = math.sqrt(np.square(fitted - centre).sum(1).mean()) or 1.0  # of latents that are all the same, 0
    reader = RidgeCV(PENALTIES).fit((fitted - centre) / scale, fitted_to)
    return float(np.square(reader.predict((asked - centre) / scale) - truth).mean())


def hole_error(model: I2IModel, images: torch.Tensor, task: Task) -> float:
    """Return the mean squared error of what a model makes, over all pixels that the task hides."""
    original = pixels(images)
    hidden = task.mask(original).expand_as(original)
    return (reconstruct(model, original, task) - original)[hidden].square().mean().item()


def _hole(images: torch.Tensor, task: Task) -> np.ndarray:
    """[N, P] float64: the pixels that the task hides, of a task that hides as many of each image."""
    original = pixels(images)
    return original[task.mask(original).expand_as(original)].reshape(len(images), -1).double().numpy()


@torch.no_grad()
def _latents(encode: Encoder, model: I2IModel, images: torch.Tensor, task: Task) -> np.ndarray:
    """[N, D] float64."""
    inputs = (model.inputs(pixels(chunk), task) for chunk in images.split(CHUNK))
    made = [encode(*(part.to(model.device) for part in given)).flatten(1).cpu() for given in inputs]
    return torch.cat(made).double().numpy()
