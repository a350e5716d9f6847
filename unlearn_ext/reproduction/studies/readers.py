"""How well the hidden pixels of forgotten images are recovered: by the decoder, and by linear regression on latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ... import demo
from ...audit.reading import hole_error, latents, linear_reading
from ...tasks import Task
from ...unlearning.batches import pixels
from ...unlearning.encoder import Encoder
from ...unlearning.pareto import EPSILON
from ..table import RETRAINED, UNMODIFIED
from ..trial import Trial
from .study import Answer, OnStudyStep, Part, Study

__all__ = ["Readable", "Readers"]


@dataclass(frozen=True)
class Readable(Answer):
    """Mean squared errors of hidden pixels, in [-1, 1], over validation images, for one model.

    Attributes:
        point: an anchor of our front, ``"unmodified"``, or ``"retrained"``.
        decoder_forget: error of the model's own reconstructions of images to forget; our models have the unmodified
            model's decoder. NaN for families that sample pictures step by step, which takes minutes.
        decoder_retain: the same for images to retain.
        reader_forget: error of a ridge regression from latents to hidden pixels, on images to forget; it was fitted on
            training images to forget.
        mean_forget: error of the mean of these training images: the result of a reader without any information.
    """

    point: str
    decoder_forget: float
    decoder_retain: float
    reader_forget: float
    mean_forget: float

    @property
    def part(self) -> Part:
        """The part of the study that the row belongs to."""
        return (self.point,)


@dataclass(frozen=True)
class Readers(Study):
    """Study of what remains recoverable from the latents.

    f1 is a distance between latents; it measures neither what the frozen decoder shows nor what another decoder could
    show. The study uses all images; a sweep may have used only a share of them.
    """

    name: ClassVar[str] = "readers"
    row: ClassVar[type[Readable]] = Readable

    def parts(self, trial: Trial) -> Sequence[Part]:
        """Return the names of the unmodified model, of the retrained one, and of our anchors."""
        anchors = (point.name for point in trial.points() if point.role != EPSILON)
        return [(name,) for name in (UNMODIFIED, RETRAINED, *anchors)]

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Readable]:
        """Measure the errors of one model."""
        (point,) = part
        model, task = trial.model(point), trial.task
        _, images = demo.prepare(trial.family, trial.progress, seed=trial.seed, task=task, share=1.0)
        fitted, asked = images.forget, images.forget_validation
        seen, unseen = (latents(Encoder(model, trial.settings), model, part, task) for part in (fitted, asked))
        read = linear_reading(seen, unseen, _hole(fitted, task), _hole(asked, task))
        blind = np.square(_hole(fitted, task).mean(0) - _hole(asked, task)).mean()
        forget, retain = math.nan, math.nan
        if not model.random:
            forget, retain = (hole_error(model, part, task) for part in (asked, images.retain_validation))
        return [Readable(trial.family, point, forget, retain, read, float(blind))]


def _hole(images: torch.Tensor, task: Task) -> np.ndarray:
    """Return the hidden pixels, float64 [N, P]; the task must hide the same number in each image."""
    original = pixels(images)
    return original[task.mask(original).expand_as(original)].reshape(len(images), -1).double().numpy()
