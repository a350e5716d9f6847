"""The search, then a sweep of every method, ours included, then the studies; what is in the tables is not redone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch

from .._utils.atomic_io import check_encodable
from .._utils.file_lock import locked
from ..errors import UserError
from ..unlearning.progress import Callback
from . import search
from .costs import measure
from .plan import Plan
from .plans import FULL
from .studies import fill
from .sweeps import Tuning
from .table import OURS, Cost, ModelRow, Table
from .trial import FAMILIES, Sweep, Trial
from .workers import Workers

__all__ = ["reproduce"]


def reproduce(
    out: str | PathLike[str],
    *,
    families: Sequence[str] = ("vqgan",),
    seeds: int | None = None,
    plan: Plan = FULL,
    jobs: int = 1,
    device: torch.device | str = "cpu",
    progress: Callback | None = None,
) -> tuple[list[ModelRow], list[Cost]]:
    """Compare our sweep with those of all baselines on the built-in digits, judged by the same f1 and f2.

    Every method gets the same search, on the first seed, and under every seed one sweep with the same number of
    gradient pairs; see :mod:`unlearn_ext.reproduction.sweeps`. A run that was cut short goes on where it stopped.

    Args:
        out: folder for ``reproduction.csv``, ``search.csv``, ``costs.csv``, a table for each study, and our models.
        families: of those that have a small model.
        seeds: how many, from 0; the plan's by default.
        plan: how thorough.
        jobs: processes that sweep side by side, by one thread each; 1: one sweep after the other, by all threads,
            whose sums differ from one thread's in their last digits. Small models are pretrained by all threads.
        device: that models unlearn and are judged on; small models are pretrained on the CPU, whatever it is.
        progress: called at most ten times a second.

    Returns:
        The rows of ``reproduction.csv`` and ``costs.csv``, those of earlier calls included.

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
        table, costs = Table(out / "reproduction.csv", ModelRow), Table(out / "costs.csv", Cost)
        tried = Table(out / search.FILE, search.Tried)
        watched = progress if jobs == 1 else None
        pairs = itertools.product(families, range(seeds or plan.seeds))
        trials = [
            Trial(family, seed, plan.efforts[family], plan.points, out, watched, device=device)
            for family, seed in pairs
        ]
        missing = [trial for trial in trials if _methods_left(table, trial)]
        for trial in missing:
            _tuned(trial, tried).check()
        for trial in missing:  # here, by all threads: with fewer, as processes have, other last digits would be cached
            trial.prepare(progress)
        with Workers(jobs, progress) as workers:
            search.search([trial for trial in trials if trial.seed == 0], tried, workers)
            trials = [_tuned(trial, tried) for trial in trials]
            runs = [run for trial in trials for run in _runs(table, trial, search.tunings(tried, trial.family))]
            for rows in workers.each(Sweep.rows, runs, str):
                table.add(rows)
            firsts = [trial for trial in trials if trial.seed == 0]
            for trial in firsts:
                _measure(costs, trial)
            for study in plan.studies:
                fill(study, firsts, out, workers)
    return list(table.rows.values()), list(costs.rows.values())


def _tuned(trial: Trial, tried: Table) -> Trial:
    """The trial with what was chosen for ours; as it is where the search is not finished."""
    chosen = search.tunings(tried, trial.family)
    return trial.tuned(chosen[OURS]) if OURS in chosen else trial


def _methods_left(table: Table, trial: Trial) -> list[str]:
    """Those that have no rows yet under the trial's seed; all rows of a sweep are added at once."""
    there = {row.method for row in table.rows.values() if row.group == (trial.family, trial.seed)}
    return [method for method in trial.methods if method not in there]


def _runs(table: Table, trial: Trial, chosen: dict[str, Tuning]) -> list[Sweep]:
    left, number = _methods_left(table, trial), {method: index for index, method in enumerate(trial.methods)}
    return [Sweep(trial, method, chosen[method], number[method], len(number)) for method in left]


def _measure(costs: Table, trial: Trial) -> None:
    """Of every method; alone, so that nothing else delays them."""
    for method in trial.methods:
        if (trial.family, method) not in costs.rows:
            costs.add([measure(trial, method)])
