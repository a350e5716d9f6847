"""Sweeps of our method and of the baselines, each with the same number of gradient pairs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..baselines import METHODS, Method, train
from ..baselines.training import OnLosses
from ..optim.control import StepStats
from ..unlearning.dial import encoder_state
from ..unlearning.history import History
from ..unlearning.progress import OnStep
from ..unlearning.schedule import SCHEDULE
from ..unlearning.settings import Settings
from ..unlearning.trainer import Trainer
from .lines import Leg
from .problem import Problem
from .table import OURS

__all__ = ["Tuning", "legs", "values"]


@dataclass(frozen=True)
class Tuning:
    """Hyperparameters that the search chooses for a method.

    Attributes:
        lr: learning rate in the first half of each leg; see :class:`~unlearn_ext.unlearning.settings.Settings`.
        scale: factor on the grid of weights, on the gains of a multiplier, or on our ``rate``.
    """

    lr: float
    scale: float = 1.0

    def of_ours(self, settings: Settings) -> Settings:
        """Return the settings of our sweep."""
        return replace(settings, lr=self.lr, rate=min(self.scale * settings.rate, 1.0))


def legs(
    name: str, problem: Problem, settings: Settings, tuning: Tuning, pairs: int, on_step: OnLosses | None = None
) -> Iterator[Leg]:
    """Sweep a method and yield each trained model.

    Args:
        name: name of a baseline, or ``"epsilon-constraint"`` for our method.
        problem: model and images.
        settings: settings of the family, before tuning.
        tuning: learning rate and scale.
        pairs: gradient pairs in the whole sweep; every leg gets the same number.
        on_step: callback, called at most ten times per second; its step counts over the whole sweep.

    Raises:
        UserError: the training diverged.
    """
    if name == OURS:
        yield from _ours(problem, tuning.of_ours(settings), pairs, on_step)
        return
    method = METHODS[name].scaled(tuning.scale)
    ladder = values(method, problem)
    steps = pairs // len(ladder)
    sweep = train(
        method, problem.model, problem.training, values=ladder, steps=steps, lr=tuning.lr, on_step=on_step,
    )  # fmt: skip
    for number, (value, model) in enumerate(zip(ladder, sweep, strict=True), 1):
        yield Leg(value, encoder_state(model), number * steps)


def values(method: type[Method], problem: Problem) -> Sequence[float]:
    """Return the values that a method sweeps: its grid, our ε, or as many NaN for a method without a knob."""
    if method.knob == "epsilon":
        return [share * problem.f1 for share in SCHEDULE.anchors]
    return method.grid or [math.nan] * len(SCHEDULE.anchors)


def _ours(problem: Problem, settings: Settings, pairs: int, on_step: OnLosses | None) -> Iterator[Leg]:
    """Train the same models as :func:`unlearn_ext.unlearning.phases.sweep`, without writing a folder."""
    model, objectives = copy.deepcopy(problem.model), replace(problem.training, settings=settings)
    steps = pairs // len(SCHEDULE.anchors)

    trainer = Trainer(model, objectives, History(), _of_trainer(on_step))
    for number, share in enumerate(SCHEDULE.anchors, 1):
        trainer.approach(share * problem.f1, steps)
        yield Leg(share * problem.f1, encoder_state(model), number * steps)


def _of_trainer(on_step: OnLosses | None) -> OnStep | None:
    """Adapt a callback to the signature that ``Trainer`` calls."""
    if on_step is None:
        return None

    def report(step: int, planned: int, stats: StepStats, f2: float) -> None:
        on_step(step, stats.constraint.item(), f2)

    return report
