"""Our fronts, then every baseline, then the studies; what is in the tables already is not computed again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch

from .. import demo
from ..baselines import METHODS, Method
from ..errors import UserError
from ..lock import locked
from ..progress import Callback
from ..writing import check_encodable
from .costs import measure
from .plan import FULL, Plan
from .studies import fill
from .table import OURS, Cost, Row, Table
from .trial import FAMILIES, BaselineRun, Trial, point
from .workers import Workers


def reproduce(
    out: str | PathLike[str],
    *,
    families: Sequence[str] = ("vqgan",),
    seeds: int | None = None,
    plan: Plan = FULL,
    jobs: int = 1,
    device: torch.device | str = "cpu",
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
        jobs: processes that models unlearn in side by side, by one thread each; 1: one after the other, by all threads,
            whose sums differ from one thread's in their last digits. Small models are pretrained by all threads.
        device: that models unlearn and are judged on; small models are pretrained on the CPU, whatever it is.
        progress: called at most ten times a second.

    Returns:
        The rows of the first two tables, those of earlier calls included.

    Raises:
        UserError: another family, or a folder that holds another experiment or anything else under the names of its
            files.
    """
    if unknown := [family for family in families if family not in FAMILIES]:
        raise UserError(f"family {unknown[0]} is not compared; known: {', '.join(FAMILIES)}.")
    out, device = Path(out), torch.device(device)
    check_encodable(out)
    plan.check(out, device)
    with locked(out):
        plan.keep(out, device)
        table, costs = Table(out / "reproduction.csv", Row), Table(out / "costs.csv", Cost)
        told = progress if jobs == 1 else None
        pairs = itertools.product(families, range(seeds or plan.seeds))
        trials = [Trial(family, seed, plan, out, told, device=device) for family, seed in pairs]
        missing = [trial for trial in trials if not _front(table, trial)]
        for trial in missing:
            trial.check()
        for trial in missing:  # here, by all threads: with fewer, as processes have, other last digits would be cached
            demo.prepare(trial.family, progress, seed=trial.seed, task=trial.task)
        with Workers(jobs, progress) as workers:
            for rows in workers.each(Trial.front, missing, lambda trial: f"front of {trial.family} {trial.seed}"):
                table.add(rows)
            runs = [run for trial in trials for run in _runs(table, trial)]
            for row in workers.each(BaselineRun.row, runs, str):
                table.add([row])
            firsts = [trial for trial in trials if trial.seed == 0]
            for trial in firsts:
                _measure(costs, trial)
            for study in plan.studies:
                fill(study, firsts, out, workers)
    return list(table.rows.values()), list(costs.rows.values())


def _front(table: Table, trial: Trial) -> list[Row]:
    return [row for row in table.rows.values() if row.key[:3] == (trial.family, trial.seed, OURS)]


def _runs(table: Table, trial: Trial) -> list[BaselineRun]:
    """Of the baselines under one seed, those that are not in the table."""
    front = _front(table, trial)
    steps = round(sum(row.gradients for row in front) / 2 / len(front))
    runs = [(method, value) for method in METHODS.values() for value in _values(method, front)]
    return [
        BaselineRun(trial, method, value, steps, index, len(runs))
        for index, (method, value) in enumerate(runs)
        if (trial.family, trial.seed, method.name, point(value)) not in table.rows and _serves(method, trial)
    ]


def _values(method: type[Method], front: Sequence[Row]) -> Sequence[float]:
    """Of the method's knob; those of ours where it is ε."""
    if method.knob == "epsilon":
        return [row.value for row in front]
    return method.grid or (math.nan,)


def _measure(costs: Table, trial: Trial) -> None:
    """Of every method that serves the family; alone, that nothing else delays them."""
    for method in (None, *METHODS.values()):
        name = method.name if method else OURS
        if (trial.family, name) not in costs.rows and (method is None or _serves(method, trial)):
            costs.add([measure(trial, method)])


def _serves(method: type[Method], trial: Trial) -> bool:
    return not (method.needs_pictures and trial.is_random)
