"""Base classes of the studies: a study computes its table part by part."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...optim.control import StepStats
from ...unlearning.progress import OnStep, Progress
from ..table import Table
from ..trial import Trial
from ..workers import Workers

__all__ = ["Answer", "OnStudyStep", "Part", "Question", "Study", "fill", "of_run"]

Part = tuple[Any, ...]  # identifies rows that are computed together, for example (model, data)
# Steps taken, steps planned, losses on the forget and the retain set.
OnStudyStep = Callable[[int, int, float, float], None]


@dataclass(frozen=True)
class Answer(ABC):
    """Base class of the rows of all studies.

    Attributes:
        family: family of the model.
    """

    family: str

    @property
    def group(self) -> str:
        """The key by which rows are grouped."""
        return self.family

    @property
    @abstractmethod
    def part(self) -> Part:
        """The part of the study that the row belongs to."""

    @property
    def key(self) -> tuple[Hashable, ...]:
        """The unique key of the row."""
        return self.group, *self.part


class Study(ABC):
    """Base class of the studies: frozen dataclasses whose fields set the size of the study.

    Attributes:
        name: name of the study and of its table.
        row: class of the table's rows.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # every subclass is a dataclass
    name: ClassVar[str]
    row: ClassVar[type[Answer]]

    @abstractmethod
    def parts(self, trial: Trial) -> Sequence[Part]:
        """Return the parts to compute for a trial whose front exists; empty if the study does not apply."""

    @abstractmethod
    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Any]:
        """Compute the rows of a part; they depend on the trial only.

        Args:
            trial: family, seed, and the models of the front.
            part: one of :meth:`parts`.
            on_step: callback during training, called at most ten times per second.
        """


def fill(study: Study, trials: Sequence[Trial], out: Path, workers: Workers) -> None:
    """Compute the parts of a study that its table ``<name>.csv`` does not contain, and add them."""
    table = Table(out / f"{study.name}.csv", study.row)
    there = {(row.family, row.part) for row in table.rows.values()}
    questions = []
    for trial in trials:
        parts = study.parts(trial)
        questions += [Question(study, trial, part, index, len(parts)) for index, part in enumerate(parts)]
    missing = [question for question in questions if (question.trial.family, question.part) not in there]
    for answers in workers.each(Question.rows, missing, str):
        table.add(answers)


@dataclass(frozen=True)
class Question:
    """One part of a study to compute.

    Attributes:
        study: the study.
        trial: family and seed.
        part: one of the study's parts.
        index: number of the part, from 0.
        total: number of parts.
    """

    study: Study
    trial: Trial
    part: Part
    index: int
    total: int

    def __str__(self) -> str:
        return " ".join(map(str, (self.study.name, *self.part)))

    def rows(self) -> list[Answer]:
        """Compute the rows of the part."""
        return self.study.answer(self.trial, self.part, self._reporter())

    def _reporter(self) -> OnStudyStep | None:
        """Return a function that reports the steps to the trial's progress callback; None without a callback."""
        progress = self.trial.progress
        if progress is None:
            return None

        def report(step: int, steps: int, f1: float, f2: float) -> None:
            progress(Progress(str(self), self.index, self.total, step, steps, f1, f2, math.nan))

        return report


def of_run(on_step: OnStudyStep | None) -> OnStep | None:
    """Adapt a callback to the signature that :class:`~unlearn_ext.unlearning.trainer.Trainer` calls."""
    if on_step is None:
        return None

    def report(step: int, planned: int, stats: StepStats, f2: float) -> None:
        on_step(step, planned, stats.constraint.item(), f2)

    return report
