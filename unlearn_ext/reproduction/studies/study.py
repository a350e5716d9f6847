"""The one shape of a study: a question beside the main comparison, answered in parts, in a table of its own."""

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

Part = tuple[Any, ...]
# Steps taken, steps planned, losses on the forget and the retain set.
OnStudyStep = Callable[[int, int, float, float], None]


@dataclass(frozen=True)
class Answer(ABC):
    """What the rows of all studies have in common.

    Attributes:
        family: of the model.
    """

    family: str

    @property
    def group(self) -> str:
        """What rows that stand together share."""
        return self.family

    @property
    @abstractmethod
    def part(self) -> Part:
        """Of the study: rows that are computed together."""

    @property
    def key(self) -> Hashable:
        """What no two rows share."""
        return self.group, *self.part


class Study(ABC):
    """A frozen dataclass whose attributes say how thorough it is.

    Attributes:
        name: of the study, and of its table.
        row: of the table, a dataclass.
    """

    name: ClassVar[str]
    row: ClassVar[type[Answer]]

    @abstractmethod
    def parts(self, trial: Trial) -> Sequence[Part]:
        """What is to be computed, for a family and seed whose front is there; none where the question has no sense."""

    @abstractmethod
    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Any]:
        """The rows of a part, which follow from the trial alone.

        Args:
            trial: family, seed, and the models of the front.
            part: one of :meth:`parts`.
            on_step: called at most ten times a second, where anything is trained.
        """


def fill(study: Study, trials: Sequence[Trial], out: Path, workers: Workers) -> None:
    """All parts into ``<name>.csv``; those that are there already are not computed again."""
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
    """One part of a study, still to be answered; its number among so many."""

    study: Study
    trial: Trial
    part: Part
    index: int
    total: int

    def __str__(self) -> str:
        return " ".join(map(str, (self.study.name, *self.part)))

    def rows(self) -> list[Answer]:
        """Answer it."""
        return self.study.answer(self.trial, self.part, None if self.trial.progress is None else self._told)

    def _told(self, step: int, steps: int, f1: float, f2: float) -> None:
        """The trial's own callback."""
        self.trial.progress(Progress(str(self), self.index, self.total, step, steps, f1, f2, math.nan))


def of_run(on_step: OnStudyStep | None) -> OnStep | None:
    """The same for a :class:`~unlearn_ext.unlearning.trainer.Trainer`, which tells more."""
    if on_step is None:
        return None

    def told(step: int, planned: int, stats: StepStats, f2: float) -> None:
        on_step(step, planned, stats.constraint.item(), f2)

    return told
