"""The hyperparameter search: the same number of trial sweeps for every method, evaluated on training images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..baselines import METHODS
from ..errors import UserError
from ..unlearning.encoder import Encoder
from ..unlearning.pareto import hypervolume
from .compare import STRICT_F2
from .lines import Leg, candidates
from .sweeps import Tuning, legs
from .table import OURS, Table

if TYPE_CHECKING:
    from .trial import Trial
    from .workers import Workers

__all__ = ["FACTORS", "FILE", "WITHOUT_KNOB", "Tried", "Try", "search", "tunings"]

FILE = "search.csv"
# Factors on the family's learning rate, and on the grid, the gains or the rate; the same number for every method.
FACTORS = ((1.0, 1.0), (2.0, 1.0), (1.0, 1 / 3), (1.0, 3.0))
WITHOUT_KNOB = ((1.0, 1.0), (2.0, 1.0), (0.5, 1.0), (4.0, 1.0))  # learning rates only: nothing else to scale


@dataclass(frozen=True)
class Tried:
    """Result of one trial sweep with the first seed.

    Attributes:
        family: family of the model.
        method: name of the method.
        lr: learning rate.
        scale: factor on the grid of weights, on the gains of a multiplier, or on our ``rate``.
        pairs: gradient pairs in the sweep.
        hypervolume: share of the box to f2 = 0.1 that the models and mixtures dominate, on training images.
        chosen: 1 for the method's largest hypervolume (the first if there are equal ones), else 0.
    """

    family: str
    method: str
    lr: float
    scale: float
    pairs: int
    hypervolume: float
    chosen: int = 0

    @property
    def group(self) -> str:
        """The key by which rows are grouped."""
        return self.family

    @property
    def key(self) -> tuple[str, str, float, float]:
        """The unique key of the row."""
        return self.family, self.method, self.lr, self.scale


@dataclass(frozen=True)
class Try:
    """One trial sweep to run.

    Attributes:
        trial: family and seed.
        method: name of the method.
        tuning: learning rate and scale to try.
        index: number of the trial sweep, from 0.
        total: number of the family's trial sweeps.
    """

    trial: Trial
    method: str
    tuning: Tuning
    index: int
    total: int

    def __str__(self) -> str:
        return f"search {self.method} lr {self.tuning.lr:g} x {self.tuning.scale:.2g}"

    @property
    def key(self) -> tuple[str, str, float, float]:
        """The key of the resulting row."""
        return self.trial.family, self.method, self.tuning.lr, self.tuning.scale

    def row(self) -> Tried:
        """Run the sweep and return its result; a sweep that diverges counts with the models trained before that."""
        trial, problem, made = self.trial, self.trial.problem, list[Leg]()
        pairs = trial.effort.pairs
        on_step = trial.reporter(str(self), self.index, self.total, pairs)
        with suppress(UserError):
            for leg in legs(self.method, problem, trial.settings, self.tuning, pairs, on_step):
                made.append(leg)
        values = [
            problem.training.evaluate(Encoder(candidate.model, trial.settings))
            for candidate in candidates(problem.model, made)
        ]
        share = hypervolume(values, (problem.f1, STRICT_F2)) / (problem.f1 * STRICT_F2)
        return Tried(*self.key, pairs, share)


def search(trials: Sequence[Trial], table: Table[Tried], workers: Workers) -> None:
    """Run the trial sweeps that the table does not contain, and mark the best one of each method.

    Args:
        trials: the trials of the first seed, one per family, before tuning.
        table: table of all trial sweeps.
        workers: workers that run the sweeps.
    """
    tries = [attempt for trial in trials for attempt in _tries(trial)]
    for row in workers.each(Try.row, [attempt for attempt in tries if attempt.key not in table.rows], str):
        table.add([row])
    for trial in trials:
        for method in trial.methods:
            mine = [row for row in table.rows.values() if (row.family, row.method) == (trial.family, method)]
            best = max(mine, key=lambda row: row.hypervolume)
            if not best.chosen:
                table.add([replace(best, chosen=1)])


def tunings(table: Table[Tried], family: str) -> dict[str, Tuning]:
    """Return the chosen tuning of each method of a family; empty before the search is finished."""
    chosen = (row for row in table.rows.values() if row.chosen and row.family == family)
    return {row.method: Tuning(row.lr, row.scale) for row in chosen}


def _tries(trial: Trial) -> list[Try]:
    factors = {method: FACTORS if method == OURS or METHODS[method].knob else WITHOUT_KNOB for method in trial.methods}
    pairs = [(method, *pair) for method, mine in factors.items() for pair in mine]
    return [
        Try(trial, method, Tuning(lr * trial.settings.lr, scale), index, len(pairs))
        for index, (method, lr, scale) in enumerate(pairs)
    ]
