"""One family with one seed: its model and images, our Pareto front, and the results of any method."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import demo
from ..baselines import METHODS
from ..baselines.training import OnLosses
from ..models import I2IModel, family_class, load
from ..tasks import Task
from ..unlearning.dial import encoder_state
from ..unlearning.encoder import Encoder
from ..unlearning.identity import known
from ..unlearning.journal import check
from ..unlearning.pareto import EPSILON, MOST_FORGOTTEN, TRAINED, ParetoPoint
from ..unlearning.phases import OUTPUTS, sweep, wanted
from ..unlearning.pictures import ALL
from ..unlearning.progress import Callback, Progress
from ..unlearning.schedule import SCHEDULE
from .effort import Effort
from .lines import Leg, candidates
from .pictures import Pictures
from .problem import Problem, on_device, posed
from .representatives import studied
from .sweeps import Tuning, legs
from .table import OURS, RETRAINED, UNMODIFIED, ModelRow

__all__ = ["CPU", "FAMILIES", "Sweep", "Trial"]

FAMILIES = tuple(demo.CHOICES)
CPU = torch.device("cpu")


class Trial:
    """One family with one seed.

    Args:
        family: family of the model.
        seed: random seed.
        effort: batch size, gradients and images.
        points: number of ε between the boundaries of our front.
        out: folder of the experiment.
        progress: callback, called at most ten times per second.
        task: the task T that hides part of an image.
        device: device of the models.

    Attributes:
        settings: settings of our sweep; before :meth:`tuned`, those that the search starts from.
    """

    def __init__(
        self,
        family: str,
        seed: int,
        effort: Effort,
        points: int,
        out: Path,
        progress: Callback | None,
        task: Task = demo.TASK,
        device: torch.device = CPU,
    ) -> None:
        self.family, self.seed, self.effort, self.n_points = family, seed, effort, points
        self.out, self.progress = out, progress
        self.task, self.device = task, device
        self.settings = self.effort.settings(family, seed)
        self.pictures = Pictures(out, family, seed)
        self.folder = self.pictures.run

    @property
    def methods(self) -> list[str]:
        """Our method and the baselines that are defined for the family."""
        random = family_class(self.family).random
        return [OURS, *(name for name, method in METHODS.items() if not (method.needs_pictures and random))]

    @property
    def problem(self) -> Problem:
        """Model and images; the model is pretrained or read from the cache, and the last problem is kept in memory."""
        return posed(self.family, self.seed, self.task, self.settings, self.effort.share, self.progress, self.device)

    def tuned(self, tuning: Tuning) -> Trial:
        """Return a copy of this trial with the settings that the search chose for our sweep."""
        other = copy.copy(self)
        other.settings = tuning.of_ours(self.settings)
        return other

    def prepare(self, progress: Callback | None) -> None:
        """Pretrain the models that the cache does not contain."""
        demo.prepare(self.family, progress, seed=self.seed, task=self.task)
        if self._has_yardstick:
            demo.retrained(self.family, progress, seed=self.seed, task=self.task)

    def check(self) -> None:
        """Raise ``UserError``, before any training, if :meth:`sweep` may not write to its folder."""
        asked = wanted(self.n_points, None, ALL)
        check(self.folder, OUTPUTS, known(self.family, self.settings, **asked), resume=True, force=False)

    def sweep(self) -> list[ParetoPoint]:
        """Run our sweep, write it to the folder, and return :meth:`points`."""
        problem, images = self.problem, self.problem.images
        sweep(
            problem.model, images.forget, images.retain, task=self.task, points=self.n_points, out=self.folder,
            held_out=(images.forget_validation, images.retain_validation), dataset=images.name,
            settings=self.settings, progress=self.progress, pictures=ALL, resume=True,
        )  # fmt: skip
        return self.points()

    def points(self) -> list[ParetoPoint]:
        """Return the folder's anchors and models at requested ε, from the most forgotten on."""
        return studied(self.folder)

    def front(self) -> list[ModelRow]:
        """Run our sweep; return the rows of the unmodified model, of the retrained one (first seed only), and ours."""
        anchors = [point for point in self.sweep() if point.role != EPSILON]
        anchors.sort(key=lambda point: (point.role == MOST_FORGOTTEN, -point.epsilon))  # the order of training
        steps = self.settings.steps
        assert steps is not None  # set by Effort.settings
        swept = [
            Leg(share * self.problem.f1, encoder_state(self.model(point.name)), number * steps)
            for number, (share, point) in enumerate(zip(SCHEDULE.anchors, anchors, strict=True), 1)
        ]
        references = [UNMODIFIED, RETRAINED] if self._has_yardstick else [UNMODIFIED]
        if self._is_first:
            self.pictures.keep_images(self.problem.images, self.task)
        return [*(self._reference(name) for name in references), *self.judged(OURS, swept)]

    def judged(self, method: str, swept: Iterable[Leg]) -> list[ModelRow]:
        """Evaluate a sweep's models and mixtures; with the first seed, save pictures of the trained models."""
        rows = []
        for point, value, made_of, pairs, model in candidates(self.problem.model, list(swept)):
            if made_of == TRAINED:
                self._keep_pictures(method, point, model)
            rows.append(self.row(method, point, value, made_of, pairs, model))
        return rows

    def model(self, point: str) -> I2IModel:
        """Return a model of the folder's front, or the unmodified or retrained model; callers must not change it."""
        if point == UNMODIFIED:
            return self.problem.model
        if point == RETRAINED:
            return on_device(self.device, demo.retrained(self.family, self.progress, seed=self.seed, task=self.task))
        return on_device(self.device, load(self.family, self.folder / point))

    def under(self, task: Task, points: int) -> Trial:
        """Return this trial with another task, its own folder, and ``points`` ε between the boundaries."""
        out = self.out / str(task).replace(":", "-")
        other = Trial(self.family, self.seed, self.effort, points, out, self.progress, task, self.device)
        other.settings = self.settings
        return other

    def row(self, method: str, point: str, value: float, made_of: str, pairs: int, model: I2IModel) -> ModelRow:
        """Evaluate f1 and f2 of a model over all images."""
        encode = Encoder(model, self.settings)
        values = (*self.problem.training.evaluate(encode), *self.problem.validation.evaluate(encode))
        return ModelRow(self.family, self.seed, method, point, value, made_of, pairs, *values)

    @property
    def _is_first(self) -> bool:
        return self.seed == 0

    @property
    def _has_yardstick(self) -> bool:
        """Whether there is a retrained model: one per family, since it takes as long as pretraining."""
        return self._is_first and self.task == demo.TASK

    def _reference(self, name: str) -> ModelRow:
        model = self.model(name)
        self._keep_pictures(name, "", model)
        return self.row(name, "", math.nan, TRAINED, 0, model)

    def reporter(self, stage: str, index: int, total: int, pairs: int) -> OnLosses | None:
        """Return a function that reports the steps of a sweep to the progress callback; None without a callback.

        Args:
            stage: name of the sweep.
            index: number of the sweep, from 0.
            total: number of sweeps.
            pairs: gradient pairs in the sweep.
        """
        progress = self.progress
        if progress is None:
            return None

        def on_step(step: int, forget_loss: float, retain_loss: float) -> None:
            progress(Progress(stage, index, total, step, pairs, forget_loss, retain_loss, math.nan))

        return on_step

    def _keep_pictures(self, method: str, point: str, model: I2IModel) -> None:
        if self._is_first:
            self.pictures.keep(method, point, model, self.problem.images, self.task)


@dataclass(frozen=True)
class Sweep:
    """The final sweep of one method, to be run.

    Attributes:
        trial: family and seed, with tuned settings.
        method: name of the method.
        tuning: the chosen hyperparameters.
        index: number of the sweep in the trial, from 0.
        total: number of sweeps in the trial.
    """

    trial: Trial
    method: str
    tuning: Tuning
    index: int
    total: int

    def __str__(self) -> str:
        return f"{self.trial.family} {self.trial.seed} {self.method}"

    def rows(self) -> list[ModelRow]:
        """Run the sweep, save pictures, and return the evaluated models."""
        trial = self.trial
        if self.method == OURS:
            return trial.front()
        pairs = trial.effort.pairs
        on_step = trial.reporter(str(self), self.index, self.total, pairs)
        return trial.judged(self.method, legs(self.method, trial.problem, trial.settings, self.tuning, pairs, on_step))
