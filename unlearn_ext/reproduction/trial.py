"""One family under one seed: its model and images, our front, and the rows of any method."""

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
    """The models of one family under one seed.

    Args:
        family: of the model.
        seed: of everything random.
        effort: what is spent on the family.
        points: ε between the boundaries of our front.
        out: folder for the front's models.
        progress: called at most ten times a second.
        task: T.
        device: that its models work on.

    Attributes:
        settings: of our sweep; before :meth:`tuned`, those that the search starts from.
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
        """Ours, and the baselines that are defined for the family."""
        random = family_class(self.family).random
        return [OURS, *(name for name, method in METHODS.items() if not (method.needs_pictures and random))]

    @property
    def problem(self) -> Problem:
        """Its model is trained now, or comes from the cache; the last one that was asked for is remembered."""
        return posed(self.family, self.seed, self.task, self.settings, self.effort.share, self.progress, self.device)

    def tuned(self, tuning: Tuning) -> Trial:
        """Return this trial with the settings of our sweep that a search chose."""
        other = copy.copy(self)
        other.settings = tuning.of_ours(self.settings)
        return other

    def prepare(self, progress: Callback | None) -> None:
        """Train what is pretrained, or find it in the cache."""
        demo.prepare(self.family, progress, seed=self.seed, task=self.task)
        if self._has_yardstick:
            demo.retrained(self.family, progress, seed=self.seed, task=self.task)

    def check(self) -> None:
        """Raise ``UserError`` where :meth:`sweep` may not write, before anything is trained for it."""
        asked = wanted(self.n_points, None)
        check(self.folder, OUTPUTS, known(self.family, self.settings, **asked), resume=True, force=False)

    def sweep(self) -> list[ParetoPoint]:
        """Sweep ours into the folder, and return :meth:`points`."""
        problem, images = self.problem, self.problem.images
        sweep(
            problem.model, images.forget, images.retain, task=self.task, points=self.n_points, out=self.folder,
            held_out=(images.forget_validation, images.retain_validation), dataset=images.name,
            settings=self.settings, progress=self.progress, resume=True,
        )  # fmt: skip
        return self.points()

    def points(self) -> list[ParetoPoint]:
        """Of the front in the folder, the anchors and the ε that were asked for, from the most forgotten on."""
        return studied(self.folder)

    def front(self) -> list[ModelRow]:
        """Sweep ours; return the rows of the unmodified model, of the retrained one under the first seed, and ours."""
        anchors = [point for point in self.sweep() if point.role != EPSILON]
        anchors.sort(key=lambda point: (point.role == MOST_FORGOTTEN, -point.epsilon))  # in the order of training
        steps = self.settings.steps
        swept = [
            Leg(share * self.problem.f1, encoder_state(self.model(point.name)), number * steps)
            for number, (share, point) in enumerate(zip(SCHEDULE.anchors, anchors, strict=True), 1)
        ]
        references = [UNMODIFIED, RETRAINED] if self._has_yardstick else [UNMODIFIED]
        if self._is_first:
            self.pictures.keep_images(self.problem.images, self.task)
        return [*(self._reference(name) for name in references), *self.judged(OURS, swept)]

    def judged(self, method: str, swept: Iterable[Leg]) -> list[ModelRow]:
        """Judge the models of a sweep and the mixtures; under the first seed, keep pictures of what is trained."""
        rows = []
        for point, value, made_of, pairs, model in candidates(self.problem.model, list(swept)):
            if made_of == TRAINED:
                self._keep_pictures(method, point, model)
            rows.append(self.row(method, point, value, made_of, pairs, model))
        return rows

    def model(self, point: str) -> I2IModel:
        """A model of the front in the folder, the unmodified or the retrained one; not to be changed."""
        if point == UNMODIFIED:
            return self.problem.model
        if point == RETRAINED:
            return on_device(self.device, demo.retrained(self.family, self.progress, seed=self.seed, task=self.task))
        return on_device(self.device, load(self.family, self.folder / point))

    def under(self, task: Task, points: int) -> Trial:
        """The same under another task, in a folder of its own, with so many ε between the boundaries."""
        out = self.out / str(task).replace(":", "-")
        other = Trial(self.family, self.seed, self.effort, points, out, self.progress, task, self.device)
        other.settings = self.settings
        return other

    def row(self, method: str, point: str, value: float, made_of: str, pairs: int, model: I2IModel) -> ModelRow:
        """Judge a model by f1 and f2 of all images."""
        encode = Encoder(model, self.settings)
        values = (*self.problem.training.evaluate(encode), *self.problem.validation.evaluate(encode))
        return ModelRow(self.family, self.seed, method, point, value, made_of, pairs, *values)

    @property
    def _is_first(self) -> bool:
        return self.seed == 0

    @property
    def _has_yardstick(self) -> bool:
        """A retrained model takes as long as a pretrained one, so there is one for each family."""
        return self._is_first and self.task == demo.TASK

    def _reference(self, name: str) -> ModelRow:
        model = self.model(name)
        self._keep_pictures(name, "", model)
        return self.row(name, "", math.nan, TRAINED, 0, model)

    def reporter(self, stage: str, index: int, total: int, pairs: int) -> OnLosses | None:
        """Return what reports the steps of a sweep to the trial's callback; None where there is none.

        Args:
            stage: what the sweep is called.
            index: its number, from 0.
            total: how many sweeps there are.
            pairs: of gradients in it.
        """
        if self.progress is None:
            return None

        def on_step(step: int, forget_loss: float, retain_loss: float) -> None:
            self.progress(Progress(stage, index, total, step, pairs, forget_loss, retain_loss, math.nan))

        return on_step

    def _keep_pictures(self, method: str, point: str, model: I2IModel) -> None:
        if self._is_first:
            self.pictures.keep(method, point, model, self.problem.images, self.task)


@dataclass(frozen=True)
class Sweep:
    """The final sweep of one method, still to be made.

    Attributes:
        trial: family and seed, with tuned settings.
        method: its name.
        tuning: of it.
        index: number of the sweep among all of the trial's, from 0.
        total: how many those are.
    """

    trial: Trial
    method: str
    tuning: Tuning
    index: int
    total: int

    def __str__(self) -> str:
        return f"{self.trial.family} {self.trial.seed} {self.method}"

    def rows(self) -> list[ModelRow]:
        """Sweep, keep pictures, and judge."""
        trial = self.trial
        if self.method == OURS:
            return trial.front()
        pairs = trial.effort.pairs
        on_step = trial.reporter(str(self), self.index, self.total, pairs)
        return trial.judged(self.method, legs(self.method, trial.problem, trial.settings, self.tuning, pairs, on_step))
