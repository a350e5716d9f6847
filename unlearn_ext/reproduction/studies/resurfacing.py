"""How many steps of ordinary training undo the forgetting."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...audit.relearning import FEW, relearn
from ...unlearning.encoder import Encoder
from ...unlearning.objectives import Objectives
from ..table import UNMODIFIED
from ..trial import Trial
from .study import Answer, OnStudyStep, Part, Study

__all__ = ["FEW_FORGET", "RETAIN", "Relearned", "Resurfacing"]

RETAIN, FEW_FORGET = "retain", "few forget"


@dataclass(frozen=True)
class Relearned(Answer):
    """One model after some steps of training.

    Attributes:
        point: name of the model in the front, or ``"unmodified"``.
        data: training data: ``"retain"``, the training images to retain, or ``"few forget"``, sixteen images to forget.
        steps: number of training steps.
        f1: forget objective over validation images.
        share: change of f1 since step 0, as a share of the difference between the unmodified model's f1 and the f1 at
            step 0; NaN for the unmodified model.
    """

    point: str
    data: str
    steps: int
    f1: float
    share: float

    @property
    def part(self) -> Part:
        """The part of the study that the row belongs to."""
        return self.point, self.data

    @property
    def key(self) -> tuple[Hashable, ...]:
        """The unique key of the row."""
        return *super().key, self.steps


@dataclass(frozen=True)
class Resurfacing(Study):
    """Study of relearning: the encoder is trained by AdamW with the family's pretraining loss; the decoder is frozen.

    Attributes:
        steps: numbers of steps after which f1 is measured, rising from 0.
        lr: learning rate.
    """

    name: ClassVar[str] = "resurfacing"
    row: ClassVar[type[Relearned]] = Relearned
    steps: tuple[int, ...]
    lr: float = 1e-4

    def parts(self, trial: Trial) -> Sequence[Part]:
        """Return all pairs of a model and its training data."""
        names = [UNMODIFIED, *(point.name for point in trial.points())]
        return [(name, data) for name in names for data in (RETAIN, FEW_FORGET)]

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Relearned]:
        """Train one model on one set of images and measure f1 between the steps."""
        point, data = part
        images, validation = trial.problem.images, trial.problem.validation
        trained_on = images.retain if data == RETAIN else images.forget[:FEW]
        model = copy.deepcopy(trial.model(point))
        losses = relearn(model, trained_on, trial.task, self.lr, trial.seed)
        noted = dict(self._noted(Encoder(model, trial.settings), losses, validation, on_step))
        begun, reference = noted[0], validation.evaluate_f1(validation.frozen)
        return [
            Relearned(trial.family, point, data, steps, f1, _share(f1, begun, reference)) for steps, f1 in noted.items()
        ]

    def _noted(
        self, encode: Encoder, losses: Iterator[float], validation: Objectives, on_step: OnStudyStep | None
    ) -> Iterator[tuple[int, float]]:
        """Yield the number of steps and f1 after them; each ``next(losses)`` trains the encoder for one step."""
        loss = math.nan
        for before, steps in itertools.pairwise((0, *self.steps)):
            for _ in range(before, steps):
                loss = next(losses)
            f1 = validation.evaluate_f1(encode)
            if on_step is not None:
                on_step(steps, self.steps[-1], f1, loss)
            yield steps, f1


def _share(f1: float, begun: float, reference: float) -> float:
    return math.nan if reference == begun else (f1 - begun) / (reference - begun)
