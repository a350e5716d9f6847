"""How fast f1 falls for each exponent δ of ψ: in Phase I towards its infimum, in Phase II to an ε."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...optim.control import EpsilonGap, GradientNorm, StepStats
from ...unlearning.history import History
from ...unlearning.trainer import Trainer
from ..trial import Trial
from .study import Answer, OnStudyStep, Part, Study, of_run

__all__ = ["EPSILON", "INFIMUM", "Convergence", "Step"]

INFIMUM, EPSILON = "I", "II"  # the phases


@dataclass(frozen=True)
class Step(Answer):
    """One step of a run from the unmodified model.

    Attributes:
        phase: ``"I"``, ψ = α‖∇f1‖^δ, or ``"II"``, ψ = α·sign(f1 − ε)·|f1 − ε|^δ with ε in the middle of the front.
        delta: exponent δ.
        step: number of the step, from 0.
        f1: forget objective over the step's minibatch, before the step.
        f2: retain objective over the step's minibatch, before the step.
        psi: ψ of the step.
    """

    phase: str
    delta: float
    step: int
    f1: float
    f2: float
    psi: float

    @property
    def part(self) -> Part:
        """The part of the study that the row belongs to."""
        return self.phase, self.delta

    @property
    def key(self) -> tuple[Hashable, ...]:
        """The unique key of the row."""
        return *super().key, self.step


@dataclass(frozen=True)
class Convergence(Study):
    """Study of the exponent δ.

    With one α for all δ, δ would mainly set the size of the first step. So α is chosen for each δ such that all runs of
    a phase start with the same ψ: in Phase I that of δ = 2 and α = 1, in Phase II that of δ = 1 and the settings' rate.
    α is constant during a run, and the learning rate is the same in all runs.

    Attributes:
        deltas: values of δ.
        runs: length of each run, as a multiple of the settings' ``steps``.
    """

    name: ClassVar[str] = "convergence"
    row: ClassVar[type[Step]] = Step
    deltas: tuple[float, ...]
    runs: int

    def parts(self, trial: Trial) -> Sequence[Part]:
        """Return all pairs of a phase and a δ."""
        return [(phase, delta) for phase in (INFIMUM, EPSILON) for delta in self.deltas]

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Step]:
        """Train with one δ and return all steps."""
        phase, delta = part
        steps_per_run = trial.settings.steps
        assert steps_per_run is not None  # set by Effort.settings
        first = self._trained(trial, GradientNorm(), 1).optimizer.stats
        control = _descending(delta, first) if phase == INFIMUM else _meeting(delta, first, trial)
        run = self._trained(trial, control, self.runs * steps_per_run, on_step)
        steps = run.history.rows()
        return [Step(trial.family, phase, delta, step, f1, f2, psi) for step, _, f1, f2, psi, *_ in steps]

    def _trained(
        self, trial: Trial, control: EpsilonGap | GradientNorm, steps: int, on_step: OnStudyStep | None = None
    ) -> Trainer:
        problem = trial.problem
        model = copy.deepcopy(problem.model)
        run = Trainer(model, problem.training, History(), of_run(on_step))
        run.train(control, steps)
        return run


def _descending(delta: float, first: StepStats) -> GradientNorm:
    """Return the control of Phase I; ``first`` are the statistics of a first step."""
    norm = math.sqrt(first.sq_constraint.item())
    return GradientNorm(alpha=norm ** (2 - delta), delta=delta)


def _meeting(delta: float, first: StepStats, trial: Trial) -> EpsilonGap:
    """Return the control of Phase II; ``first`` are the statistics of a first step."""
    front = trial.points()
    epsilon = front[len(front) // 2].epsilon
    gap, settings = abs(first.constraint.item() - epsilon), trial.settings
    return EpsilonGap(epsilon, delta=delta, alpha=settings.rate / settings.lr * gap ** (1 - delta))
