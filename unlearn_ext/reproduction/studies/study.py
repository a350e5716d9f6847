"""The one shape of a study: a question beside the main comparison, answered in parts, in a table of its own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...control import StepStats
from ...progress import Progress
from ...run import OnStep as OnRunStep
from ..table import Table

if TYPE_CHECKING:
    from ..trial import Trial

Part = tuple[Any, ...]
OnStep = Callable[[int, int, float, float], None]  # steps taken, steps planned, losses on the forget and the retain set


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
    def answer(self, trial: Trial, part: Part, on_step: OnStep | None) -> list[Any]:
        """The rows of a part, which follow from the trial alone.

        Args:
            trial: family, seed, and the models of the front.
            part: one of :meth:`parts`.
            on_step: called at most ten times a second, where anything is trained.
        """


def fill(study: Study, trial: Trial, out: Path) -> None:
    """All parts into ``<name>.csv``; those that are there already are not computed again."""
    table = Table(out / f"{study.name}.csv", study.row)
    there = {row.part for row in table.rows.values() if row.family == trial.family}
    parts = study.parts(trial)
    for index, part in enumerate(parts):
        if part not in there:
            table.add(study.answer(trial, part, _told(study, trial, part, index, len(parts))))


def of_run(on_step: OnStep | None) -> OnRunStep | None:
    """The same for a :class:`~unlearn_ext.run.Run`, which tells more."""
    if on_step is None:
        return None

    def told(step: int, planned: int, stats: StepStats, f2: float) -> None:
        on_step(step, planned, stats.constraint.item(), f2)

    return told


def _told(study: Study, trial: Trial, part: Part, index: int, total: int) -> OnStep | None:
    """What tells the trial's own callback of a part's steps."""
    if trial.progress is None:
        return None
    stage = " ".join(map(str, (study.name, *part)))
    return lambda *now: trial.progress(Progress(stage, index, total, *now, math.nan))
