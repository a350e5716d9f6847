"""The experiment: search, a sweep of every method, then the studies; results that the tables contain are kept."""

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
    """Compare our method with all baselines on the built-in digits, by the same f1 and f2.

    Every method gets the same search with the first seed, then one sweep per seed with the same number of gradient
    pairs; see :mod:`unlearn_ext.reproduction.sweeps`. An interrupted run resumes where it stopped.

    Args:
        out: folder for ``reproduction.csv``, ``search.csv``, ``costs.csv``, a table for each study, and our models.
        families: families with a small built-in model.
        seeds: number of seeds, from 0; by default the plan's.
        plan: how thorough the experiment is.
        jobs: number of parallel processes, each with one thread. With 1, sweeps run one after the other with all
            threads, and results differ from those of one thread in the last digits. Pretraining always uses all
            threads.
        device: device for unlearning and evaluation; small models are always pretrained on the CPU.
        progress: callback, called at most ten times per second.

    Returns:
        The rows of ``reproduction.csv`` and ``costs.csv``, including those of earlier calls.

    Raises:
        UserError: unknown family; or the folder contains another experiment, or other files with the names of the
            experiment's files.
    """
    if unknown := [family for family in families if family not in FAMILIES]:
        raise UserError(f"family {unknown[0]} is not compared; choose from: {', '.join(FAMILIES)}.")
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
        for trial in missing:  # in this process: the workers' single thread would give models with other last digits
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
    """Return the trial with the settings that the search chose for our method, or unchanged if it is unfinished."""
    chosen = search.tunings(tried, trial.family)
    return trial.tuned(chosen[OURS]) if OURS in chosen else trial


def _methods_left(table: Table, trial: Trial) -> list[str]:
    """Return the methods without rows for the trial's seed; all rows of a sweep are added at once."""
    there = {row.method for row in table.rows.values() if row.group == (trial.family, trial.seed)}
    return [method for method in trial.methods if method not in there]


def _runs(table: Table, trial: Trial, chosen: dict[str, Tuning]) -> list[Sweep]:
    left, number = _methods_left(table, trial), {method: index for index, method in enumerate(trial.methods)}
    return [Sweep(trial, method, chosen[method], number[method], len(number)) for method in left]


def _measure(costs: Table, trial: Trial) -> None:
    """Measure each method's cost in this process, while no worker is busy."""
    for method in trial.methods:
        if (trial.family, method) not in costs.rows:
            costs.add([measure(trial, method)])
