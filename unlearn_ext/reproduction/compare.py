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
class Beaten:
    """How many models of our fronts one method's models dominate, and how many places of our front clearly.

    A place is the same ε, counted from the most forgotten, under every seed. One value of the method's knob beats it
    clearly when both f1 and f2 are lower by more than half the 95 % interval of that difference over seeds.

    Attributes:
        models: of our fronts that a model of the same seed dominates.
        ours: how many our fronts have.
        clearly: places; 0 below two seeds, which have no interval.
        places: how many there are; 0 below two seeds.
    """

    models: int
    ours: int
    clearly: int
    places: int

    def __str__(self) -> str:
        return f"{self.models} of {self.ours}" + (f", {self.clearly} of {self.places} clearly" if self.places else "")


@dataclass(frozen=True)
class Standing:
    """How a method did in one family.

    Attributes:
        method: its name.
        hypervolume: share of the box between (0, 0) and the worst corner that its models dominate, training images.
        hypervolume_validation: likewise, validation images.
        models: how many, over all seeds.
        gradients: for all of them.
        beaten: what it beats of ours, training images.
        beaten_validation: likewise, validation images.
    """

    method: str
    hypervolume: Interval
    hypervolume_validation: Interval
    models: int
    gradients: int
    beaten: Beaten
    beaten_validation: Beaten


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
    )


def _shares(mine: Sequence[Row], rows: Sequence[Row], view: Callable[[Row], Values]) -> list[float]:
    """The hypervolume's share of its box, a seed each."""
    worst = {row.seed: (view(row)[0], WORST_F2) for row in rows if row.method == UNMODIFIED}
    seeds = dict.fromkeys(row.seed for row in mine)
    values = {seed: [view(row) for row in mine if row.seed == seed] for seed in seeds}
    return [hypervolume(values[seed], worst[seed]) / math.prod(worst[seed]) for seed in seeds]


def _beaten(mine: Sequence[Row], ours: Sequence[Row], view: Callable[[Row], Values]) -> Beaten:
    models = sum(any(row.seed == our.seed and dominates(view(row), view(our)) for row in mine) for our in ours)
    if len({row.seed for row in ours}) < 2:
        return Beaten(models, len(ours), 0, 0)
    settings, places = _over_seeds(mine), _over_seeds(ours)
    clearly = sum(any(_clearly_lower(setting, place, view) for setting in settings) for place in places)
    return Beaten(models, len(ours), clearly, len(places))


def _over_seeds(rows: Sequence[Row]) -> list[tuple[Row, ...]]:
    """What stands at the same place of a method's rows, one of each seed."""
    seeds = dict.fromkeys(row.seed for row in rows)
    return list(zip(*([row for row in rows if row.seed == seed] for seed in seeds), strict=False))


def _clearly_lower(theirs: Sequence[Row], ours: Sequence[Row], view: Callable[[Row], Values]) -> bool:
    pairs = [(view(their), view(our)) for their in theirs for our in ours if their.seed == our.seed]
    gains = [interval([our[k] - their[k] for their, our in pairs]) for k in (0, 1)]
    return all(gain.mean > gain.half for gain in gains)


def interval(values: Sequence[float]) -> Interval:
    """Of one number for each seed."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Interval(fmean(values), math.nan)
    quantile = require("scipy.stats", "report").t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return Interval(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))
