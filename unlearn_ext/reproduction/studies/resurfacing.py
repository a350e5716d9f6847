"""How many steps of ordinary training bring the forgotten back."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...models import I2IModel
from ...pretrain import RECIPES
from ...pretrain.recipe import Minibatches
from ...tasks import Task
from ...unlearning.encoder import Encoder
from ...unlearning.objectives import Objectives
from ..table import UNMODIFIED
from ..trial import Trial
from .study import Answer, OnStudyStep, Part, Study

__all__ = ["FEW", "FEW_FORGET", "RETAIN", "Relearned", "Resurfacing", "relearn"]

RETAIN, FEW_FORGET = "retain", "few forget"
FEW = 16  # images to forget, of those that unlearning saw; also the images of a step


@dataclass(frozen=True)
class Relearned(Answer):
    """One model after some steps of training.

    Attributes:
        point: of the front, or ``"unmodified"``.
        data: trained on: ``"retain"``, the training images to retain, or ``"few forget"``, sixteen to forget.
        steps: of training.
        f1: forget objective over validation images.
        share: of the way from f1 without a step to that of the unmodified model without a step; NaN of the latter.
    """

    point: str
    data: str
    steps: int
    f1: float
    share: float

    @property
    def part(self) -> Part:
        return self.point, self.data

    @property
    def key(self) -> Hashable:
        return *super().key, self.steps


@dataclass(frozen=True)
class Resurfacing(Study):
    """The encoder is trained by the loss that the family's small model was pretrained by, with D in place, by AdamW.

    Attributes:
        steps: after which f1 is noted, rising from 0.
        lr: learning rate.
    """

    name: ClassVar[str] = "resurfacing"
    row: ClassVar[type[Relearned]] = Relearned
    steps: tuple[int, ...]
    lr: float = 1e-4

    def parts(self, trial: Trial) -> Sequence[Part]:
        names = [UNMODIFIED, *(point.name for point in trial.points())]
        return [(name, data) for name in names for data in (RETAIN, FEW_FORGET)]

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Relearned]:
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
        """Steps taken, and f1 after them, of an encoder that is trained wherever the next loss is asked for."""
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


def relearn(model: I2IModel, images: torch.Tensor, task: Task, lr: float, seed: int) -> Iterator[float]:
    """Trains a model's encoder in place; the loss of one step after another, without end.

    Args:
        model: of a family that has a recipe, whose loss it is.
        images: uint8 [N, C, H, W], or float in [-1, 1].
        task: T.
        lr: learning rate of AdamW.
        seed: of the minibatches, and of what a loss draws.
    """
    recipe = RECIPES[model.family]()
    batches = Minibatches(images.to(model.device), FEW, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.encoder_parameters(), lr=lr, weight_decay=0.0)
    while True:
        loss = recipe.loss(model, batches, task, recipe.steps)  # as it is when pretraining has come to its end
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
