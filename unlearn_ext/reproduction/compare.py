"""Comparison of methods: hypervolume and f2 at equal f1, with confidence intervals over seeds, and verdicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ..errors import require
from ..unlearning.pareto import TRAINED, Values, hypervolume, nondominated
from .table import OURS, REFERENCES, UNMODIFIED, ModelRow

__all__ = [
    "CONFIDENCE",
    "LEAST_F2",
    "REACHED",
    "SHARES",
    "STRICT_F2",
    "VIEWS",
    "WORST_F2",
    "Interval",
    "Seen",
    "Standing",
    "Verdict",
    "View",
    "f2_at",
    "interval",
    "standings",
    "verdicts",
]

# Reference points of the hypervolume, in f2: the whole variance of the retained latents, and a tenth of it, the range
# in which the methods differ.
WORST_F2 = 1.0
STRICT_F2 = 0.1
SHARES = (0.8, 0.5, 0.25, 0.1, 0.03)  # of the unmodified model's f1; f2 is compared at these f1
REACHED = 0.75  # share of the strict box; the pairs until a sweep dominates it are reported
LEAST_F2 = 1e-12  # replaces smaller f2, since 0 has no logarithm
CONFIDENCE = 0.95

View = Callable[[ModelRow], Values]
VIEWS: dict[str, View] = {
    "validation": lambda row: row.values_validation,
    "training": lambda row: row.values,
}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % confidence interval by Student's t.

    Attributes:
        mean: mean over seeds.
        half: half of the interval's width; NaN with one seed, or if a value is not finite.
    """

    mean: float
    half: float


@dataclass(frozen=True)
class Seen:
    """Results of a method on training images or on validation images.

    Attributes:
        strict: share of the box from (0, 0) to the unmodified model's f1 and f2 = 0.1 that the method's models and
            mixtures dominate.
        wide: the same share for the box to f2 = 1.
        f2: f2 at each of ``SHARES`` of the unmodified model's f1, see :func:`f2_at`; NaN if a seed does not reach it.
        pairs: gradient pairs until ``strict`` is at least ``REACHED``; NaN if a seed does not reach it.
    """

    strict: Interval
    wide: Interval
    f2: tuple[Interval, ...]
    pairs: Interval


@dataclass(frozen=True)
class Standing:
    """Results of a method in one family.

    Attributes:
        method: name of the method.
        seen: results on ``"validation"`` and on ``"training"`` images.
        trained: number of trained models, over all seeds.
        mixtures: number of mixtures, over all seeds.
        pairs: gradient pairs in a sweep.
    """

    method: str
    seen: dict[str, Seen]
    trained: int
    mixtures: int
    pairs: int


@dataclass(frozen=True)
class Verdict:
    """Comparison of our method with the best baseline at one f1.

    Attributes:
        share: the f1, as a share of the unmodified model's f1.
        rival: the baseline with the lowest mean f2 at this f1, among those that reach it with every seed; empty if
            none does.
        ratio: mean over seeds of log(our f2 / the rival's f2), and half of its interval.
        word: ``"ahead"``, ``"equal"`` if the interval contains 0, or ``"behind"``; empty if there is no interval, for
            example with one seed. A method that does not reach this f1 with every seed is behind one that does.
    """

    share: float
    rival: str
    ratio: Interval
    word: str


def standings(rows: Sequence[ModelRow]) -> list[Standing]:
    """Return the results of all methods, ours included, by falling strict hypervolume on validation images.

    Args:
        rows: rows of one family.
    """
    methods = dict.fromkeys(row.method for row in rows if row.method not in REFERENCES)
    return sorted((_standing(method, rows) for method in methods), key=lambda s: -s.seen["validation"].strict.mean)


def verdicts(rows: Sequence[ModelRow], kind: str) -> list[Verdict]:
    """Compare our method with the best baseline at each of ``SHARES``.

    Args:
        rows: rows of one family.
        kind: ``"validation"`` or ``"training"`` images.
    """
    methods = dict.fromkeys(row.method for row in rows if row.method not in REFERENCES)
    return [_verdict(share, {method: _f2(method, rows, VIEWS[kind], share) for method in methods}) for share in SHARES]


def f2_at(values: Sequence[Values], f1: float) -> float:
    """Return f2 of a Pareto front at a given f1, with log f2 interpolated linearly in f1 between neighbours.

    Args:
        values: (f1, f2) of models and mixtures; dominated ones are ignored.
        f1: where f2 is wanted. Above the front's largest f1, the result is f2 of the model with that largest f1,
            which has forgotten more than asked.

    Returns:
        f2, or NaN if ``f1`` is below the front's smallest f1.
    """
    finite = [value for value in values if all(map(math.isfinite, value))]
    front = sorted({value for value, free in zip(finite, nondominated(finite), strict=True) if free})
    if not front or f1 < front[0][0]:
        return math.nan
    for (x, y), (x_next, y_next) in itertools.pairwise(front):
        if x <= f1 < x_next:
            along = (f1 - x) / (x_next - x)
            low, high = (math.log(max(f2, LEAST_F2)) for f2 in (y, y_next))
            return math.exp(low + along * (high - low))
    return front[-1][1]


def interval(values: Sequence[float]) -> Interval:
    """Return the mean and the confidence interval of values, one per seed."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Interval(fmean(values), math.nan)
    quantile = require("scipy.stats", "report").t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return Interval(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))


def _standing(method: str, rows: Sequence[ModelRow]) -> Standing:
    mine = [row for row in rows if row.method == method]
    trained = sum(row.made_of == TRAINED for row in mine)
    seen = {kind: _seen(method, rows, view) for kind, view in VIEWS.items()}
    return Standing(method, seen, trained, len(mine) - trained, max(row.pairs for row in mine))


def _seen(method: str, rows: Sequence[ModelRow], view: View) -> Seen:
    seeds = _by_seed(method, rows)
    corners = {row.seed: view(row)[0] for row in rows if row.method == UNMODIFIED}
    strict, wide = (
        interval([_share(map(view, mine), corners[seed], worst) for seed, mine in seeds.items()])
        for worst in (STRICT_F2, WORST_F2)
    )
    pairs = [_pairs(mine, view, corners[seed]) for seed, mine in seeds.items()]
    f2 = tuple(interval(_f2(method, rows, view, share)) for share in SHARES)
    return Seen(strict, wide, f2, interval(pairs))


def _share(values: Iterable[Values], f1: float, f2: float) -> float:
    """Return the share of the box from (0, 0) to (f1, f2) that the values dominate."""
    return hypervolume(values, (f1, f2)) / (f1 * f2)


def _pairs(mine: Sequence[ModelRow], view: View, f1: float) -> float:
    """Return the fewest gradient pairs whose models and mixtures dominate ``REACHED`` of the strict box, else NaN."""
    for pairs in sorted({row.pairs for row in mine}):
        if _share((view(row) for row in mine if row.pairs <= pairs), f1, STRICT_F2) >= REACHED:
            return pairs
    return math.nan


def _f2(method: str, rows: Sequence[ModelRow], view: View, share: float) -> list[float]:
    """Return f2 at a share of the unmodified model's f1, one number per seed."""
    corners = {row.seed: view(row)[0] for row in rows if row.method == UNMODIFIED}
    return [f2_at([view(row) for row in mine], share * corners[seed]) for seed, mine in _by_seed(method, rows).items()]


def _by_seed(method: str, rows: Sequence[ModelRow]) -> dict[int, list[ModelRow]]:
    mine = [row for row in rows if row.method == method]
    return {seed: [row for row in mine if row.seed == seed] for seed in sorted({row.seed for row in mine})}


def _verdict(share: float, f2: dict[str, list[float]]) -> Verdict:
    """Compare our f2 with the best baseline's; ``f2`` has one number per seed for each method."""
    ours = f2.get(OURS, [])
    rivals = {m: fmean(v) for m, v in f2.items() if m != OURS and len(v) == len(ours) and all(map(math.isfinite, v))}
    gets_there = bool(ours) and all(map(math.isfinite, ours))
    if not rivals or not gets_there:
        word = "" if len(ours) < 2 else "ahead" if gets_there else "behind" if rivals else ""
        return Verdict(share, min(rivals, key=rivals.__getitem__, default=""), Interval(math.nan, math.nan), word)
    rival = min(rivals, key=rivals.__getitem__)
    pairs = zip(ours, f2[rival], strict=True)
    ratio = interval([math.log(max(a, LEAST_F2) / max(b, LEAST_F2)) for a, b in pairs])
    if math.isnan(ratio.half):
        return Verdict(share, rival, ratio, "")
    word = "equal" if abs(ratio.mean) <= ratio.half else "ahead" if ratio.mean < 0 else "behind"
    return Verdict(share, rival, ratio, word)
