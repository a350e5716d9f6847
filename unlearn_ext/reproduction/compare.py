"""What the rows say: hypervolumes with their interval over seeds, and who dominates whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ..errors import require
from ..pareto import Values, dominates, hypervolume
from .table import OURS, UNMODIFIED, Row

# The hypervolume's worst corner, for all alike: nothing forgotten, and retained latents off by as much as they vary.
WORST_F2 = 1.0
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds; half its width at 95 %, by Student's t, NaN of one seed or where a number is not finite."""

    mean: float
    half: float


@dataclass(frozen=True)
class Standing:
    """How a method did in one family.

    Attributes:
        method: its name.
        hypervolume: share of the box between (0, 0) and the worst corner that its models dominate, training images.
        hypervolume_validation: likewise, validation images.
        models: how many, over all seeds.
        gradients: for all of them.
        beaten: models of our fronts that one of its models dominates, training images.
        beaten_validation: likewise, validation images.
        ours: how many models our fronts have.
    """

    method: str
    hypervolume: Interval
    hypervolume_validation: Interval
    models: int
    gradients: int
    beaten: int
    beaten_validation: int
    ours: int


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Of all methods, ours among them, from the largest hypervolume down; rows are of one family."""
    methods = dict.fromkeys(row.method for row in rows if row.method != UNMODIFIED)
    return sorted((_standing(method, rows) for method in methods), key=lambda s: -s.hypervolume.mean)


def _standing(method: str, rows: Sequence[Row]) -> Standing:
    mine = [row for row in rows if row.method == method]
    ours = [row for row in rows if row.method == OURS]
    training, validation = (lambda row: row.values), (lambda row: row.values_validation)
    return Standing(
        method,
        *(interval(_shares(mine, rows, view)) for view in (training, validation)),
        len(mine),
        sum(row.gradients for row in mine),
        *(_beaten(mine, ours, view) for view in (training, validation)),
        len(ours),
    )


def _shares(mine: Sequence[Row], rows: Sequence[Row], view: Callable[[Row], Values]) -> list[float]:
    """The hypervolume's share of its box, a seed each."""
    worst = {row.seed: (view(row)[0], WORST_F2) for row in rows if row.method == UNMODIFIED}
    seeds = dict.fromkeys(row.seed for row in mine)
    values = {seed: [view(row) for row in mine if row.seed == seed] for seed in seeds}
    return [hypervolume(values[seed], worst[seed]) / math.prod(worst[seed]) for seed in seeds]


def _beaten(mine: Sequence[Row], ours: Sequence[Row], view: Callable[[Row], Values]) -> int:
    return sum(any(row.seed == our.seed and dominates(view(row), view(our)) for row in mine) for our in ours)


def interval(values: Sequence[float]) -> Interval:
    """Of one number for each seed."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Interval(fmean(values), math.nan)
    quantile = require("scipy.stats", "report").t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return Interval(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))
