"""Ours, then every baseline, seed by seed, then the studies; what is in the tables already is not computed again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from ..baselines import METHODS, Method
from ..errors import UserError
from ..lock import locked
from ..progress import Callback
from .costs import measure
from .plan import FULL, Plan
from .studies import fill
from .table import OURS, Cost, Row, Table
from .trial import FAMILIES, Trial, point


def reproduce(
    out: str | PathLike[str],
    *,
    families: Sequence[str] = ("vqgan",),
    seeds: int | None = None,
    plan: Plan = FULL,
    progress: Callback | None = None,
) -> tuple[list[Row], list[Cost]]:
    """The ε-front and all baselines on the built-in digits, judged by the same f1 and f2.

    Every model of a baseline is trained with as many gradients as a model of the front took on average, Phase I
    included. A run cut short goes on where it stopped, inside a front too.

    Args:
        out: folder for ``reproduction.csv``, ``costs.csv``, a table a study, and the models of the fronts.
        families: of those that have a small model.
        seeds: how many, from 0; the plan's by default.
        plan: how thorough.
        progress: called at most ten times a second.

    Returns:
        The rows of the first two tables, those of earlier calls included.

    Raises:
        UserError: another family, or a folder that holds another experiment.
    """
    if unknown := [family for family in families if family not in FAMILIES]:
        raise UserError(f"family {unknown[0]} is not compared; known: {', '.join(FAMILIES)}.")
    out = Path(out)
    plan.keep(out)
    with locked(out):
        table, costs = Table(out / "reproduction.csv", Row), Table(out / "costs.csv", Cost)
        for family in families:
            trials = [Trial(family, seed, plan, out, progress) for seed in range(seeds or plan.seeds)]
            for trial in trials:
                _fill(table, trial)
            for method in (None, *METHODS.values()):
                name = method.name if method else OURS
                if (family, name) not in costs.rows and _serves(method, trials[0]):
                    costs.add([measure(trials[0], method)])
            for study in plan.studies:
                fill(study, trials[0], out)
    return list(table.rows.values()), list(costs.rows.values())


def _fill(table: Table, trial: Trial) -> None:
    """All rows of one family under one seed."""

    def front() -> list[Row]:
        return [row for row in table.rows.values() if row.key[:3] == (trial.family, trial.seed, OURS)]

    if not front():
        table.add(trial.front())
    steps = round(sum(row.gradients for row in front()) / 2 / len(front()))
    runs = [(method, value) for method in METHODS.values() for value in _values(method, front())]
    for index, (method, value) in enumerate(runs):
        key = (trial.family, trial.seed, method.name, point(value))
        if key not in table.rows and _serves(method, trial):
            table.add([trial.baseline(method, value, steps, index, len(runs))])


def _values(method: type[Method], front: Sequence[Row]) -> Sequence[float]:
    """Of the method's knob; those of ours where it is ε."""
    if method.knob == "epsilon":
        return [row.value for row in front]
    return method.grid or (math.nan,)


def _serves(method: type[Method] | None, trial: Trial) -> bool:
    return method is None or not (method.needs_pictures and trial.problem.model.random)
