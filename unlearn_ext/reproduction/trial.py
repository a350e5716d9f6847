"""One family under one seed: its model and images, the front, and what any baseline makes of it."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from .. import data, demo
from ..baselines import Method, train
from ..encoder import Encoder
from ..identity import known
from ..journal import check
from ..models import I2IModel, load
from ..objectives import Encode, Objectives
from ..pareto import ParetoFront, ParetoPoint
from ..phases import FRONT, OUTPUTS, sweep, wanted
from ..progress import Callback, Progress
from ..settings import Settings
from ..tasks import Task
from .pictures import Pictures
from .plan import BASELINE_LR, Plan
from .table import OURS, UNMODIFIED, Row

FAMILIES = tuple(demo.CHOICES)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Problem:
    """What all methods are given."""

    model: I2IModel
    images: data.ForgetRetain
    training: Objectives
    validation: Objectives


class Trial:
    """The models of one family under one seed.

    Args:
        family: of the model.
        seed: of everything random.
        plan: how thorough.
        out: folder for the front's models.
        progress: called at most ten times a second.
        task: T.
        device: that its models work on.
    """

    def __init__(
        self,
        family: str,
        seed: int,
        plan: Plan,
        out: Path,
        progress: Callback | None,
        task: Task = demo.TASK,
        device: torch.device = CPU,
    ) -> None:
        self.family, self.seed, self.plan, self.out, self.progress = family, seed, plan, out, progress
        self.task, self.device = task, device
        self.settings = replace(demo.CHOICES[family].settings, seed=seed)
        self.pictures = Pictures(out, family, seed)
        self.folder = self.pictures.run

    @property
    def problem(self) -> Problem:
        """Its model is trained now, or comes from the cache; the last one that was asked for is remembered."""
        return posed(self.family, self.seed, self.task, self.settings, self.progress, self.device)

    @property
    def is_random(self) -> bool:
        """Whether its models are random by nature, and have no picture of what is encoded; of a front in the folder."""
        return load(self.family, self.folder / self.points()[0].name).random

    def check(self) -> None:
        """Raise ``UserError`` where :meth:`front` may not write, before anything is trained for it."""
        asked = wanted(self.plan.points, None)
        check(self.folder, OUTPUTS, known(self.family, self.settings, **asked), resume=True, force=False)

    def front(self) -> list[Row]:
        """Of the unmodified model, and of ours from the most forgotten to the least."""
        problem, folder, images = self.problem, self.folder, self.problem.images
        front = sweep(
            problem.model, images.forget, images.retain, task=self.task, points=self.plan.points, out=folder,
            held_out=(images.forget_validation, images.retain_validation), dataset=images.name,
            settings=self.settings, progress=self.progress, resume=True,
        )  # fmt: skip
        with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
            steps = Counter(row["point"] for row in csv.DictReader(file))
        self.pictures.keep_images(images, self.task)
        self.keep_pictures(UNMODIFIED, "", problem.model)
        rows = [self.row(UNMODIFIED, "", math.nan, problem.training.frozen, 0)]
        for point in front:
            self.keep_pictures(OURS, point.name, self.model(point.name))
            values = (*point.values, point.f1_validation, point.f2_validation)
            rows.append(Row(self.family, self.seed, OURS, point.name, point.epsilon, *values, 2 * steps[point.name]))
        return rows

    def points(self) -> list[ParetoPoint]:
        """Of the front in the folder, from the most forgotten to the least."""
        return list(ParetoFront.from_csv(self.folder / FRONT))

    def model(self, point: str) -> I2IModel:
        """A model of the front in the folder, or the unmodified one; not to be changed."""
        if point == UNMODIFIED:
            return self.problem.model
        return _on(self.device, load(self.family, self.folder / point))

    def under(self, task: Task, points: int) -> Trial:
        """The same under another task, in a folder of its own, with so many ε between the boundaries."""
        out = self.out / str(task).replace(":", "-")
        return Trial(self.family, self.seed, replace(self.plan, points=points), out, self.progress, task, self.device)

    def keep_pictures(self, method: str, point: str, model: I2IModel) -> None:
        """Of what a model makes of validation images."""
        self.pictures.keep(method, point, model, self.problem.images, self.task)

    def row(self, method: str, point: str, value: float, encode: Encode, gradients: int) -> Row:
        """Judge a model by f1 and f2 of all images."""
        values = (*self.problem.training.evaluate(encode), *self.problem.validation.evaluate(encode))
        return Row(self.family, self.seed, method, point, value, *values, gradients)


@dataclass(frozen=True)
class BaselineRun:
    """One model of a baseline, still to be made.

    Attributes:
        trial: family and seed.
        method: the baseline.
        value: of its knob, NaN where it has none.
        steps: of training.
        index: number of the model among all baselines', from 0.
        total: how many those are.
    """

    trial: Trial
    method: type[Method]
    value: float
    steps: int
    index: int
    total: int

    def __str__(self) -> str:
        return f"{self.method.name} {point(self.value)}".strip()

    def row(self) -> Row:
        """Train it, keep its pictures, and judge it."""
        trial, method, value = self.trial, self.method, self.value
        (made,) = train(
            method, trial.problem.model, trial.problem.training, values=None if math.isnan(value) else [value],
            steps=self.steps, lr=BASELINE_LR, on_step=None if trial.progress is None else self._told,
        )  # fmt: skip
        trial.keep_pictures(method.name, point(value), made)
        return trial.row(method.name, point(value), value, Encoder(made, trial.settings), 2 * self.steps)

    def _told(self, step: int, forget_loss: float, retain_loss: float) -> None:
        now = step, self.steps, forget_loss, retain_loss, math.nan
        self.trial.progress(Progress(str(self), self.index, self.total, *now))


@lru_cache(maxsize=1)
def posed(
    family: str, seed: int, task: Task, settings: Settings, progress: Callback | None, device: torch.device
) -> Problem:
    """The problem of a trial."""
    model, images = demo.prepare(family, progress, seed=seed, task=task)
    model = _on(device, model)
    training = Objectives.freeze(model, images.forget, images.retain, task, settings=settings)
    validation = training.held_out(images.forget_validation, images.retain_validation)
    return Problem(model, images, training, validation)


def _on(device: torch.device, model: I2IModel) -> I2IModel:
    model.module.to(device)
    return model


def point(value: float) -> str:
    """What the model at a value of a knob is called; nothing where there is no knob."""
    return "" if math.isnan(value) else f"{value:.4g}"
