"""What the rows say: hypervolumes and f2 at equal f1 with their intervals over seeds, and who is ahead."""

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

# Worst corners of the hypervolume, in f2: retained latents off by as much as they vary, and by a tenth of that, where
# the methods differ.
WORST_F2 = 1.0
STRICT_F2 = 0.1
SHARES = (0.8, 0.5, 0.25, 0.1, 0.03)  # of the unmodified model's f1, at which f2 is compared
REACHED = 0.75  # hypervolume to f2 = 0.1, for the number of pairs that reach it
LEAST_F2 = 1e-12  # in place of 0, which has no logarithm
CONFIDENCE = 0.95

View = Callable[[ModelRow], Values]
VIEWS: dict[str, View] = {
    "validation": lambda row: row.values_validation,
    "training": lambda row: row.values,
}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds; half its width at 95 %, by Student's t, NaN of one seed or where a number is not finite."""

    mean: float
    half: float


@dataclass(frozen=True)
class Seen:
    """How a method did, on images of one kind.

    Attributes:
        strict: share that its models and mixtures dominate of the box between (0, 0) and the unmodified model's f1 and
            f2 = 0.1.
        wide: likewise, to f2 = 1.
        f2: at each of ``SHARES`` of the unmodified model's f1, see :func:`f2_at`; NaN where a seed does not get there.
        pairs: of gradients until ``strict`` is ``REACHED``; NaN where a seed does not get there.
    """

    strict: Interval
    wide: Interval
    f2: tuple[Interval, ...]
    pairs: Interval


@dataclass(frozen=True)
class Standing:
    """How a method did in one family.

    Attributes:
        method: its name.
        seen: by kind of images, ``"validation"`` and ``"training"``.
        trained: how many models, over all seeds.
        mixtures: how many, over all seeds.
        pairs: of gradients in a sweep.
    """

    method: str
    seen: dict[str, Seen]
    trained: int
    mixtures: int
    pairs: int


@dataclass(frozen=True)
class Verdict:
    """Ours against the best swept baseline at one share of f1.

    Attributes:
        share: of the unmodified model's f1.
        rival: the baseline with the lowest mean f2 there, of those that get there under every seed; empty: none does.
        ratio: mean over seeds of log(f2 of ours / f2 of the rival), and half its interval.
        word: ``"ahead"``, ``"equal"`` where 0 is in the interval, ``"behind"``; empty where there is no interval, as
            of one seed. Who does not get there under every seed is behind one who does.
    """

    share: float
    rival: str
    ratio: Interval
    word: str


def standings(rows: Sequence[ModelRow]) -> list[Standing]:
    """Of all methods, ours among them, from the largest strict hypervolume on validation images down.

    Args:
        rows: of one family.
    """
    methods = dict.fromkeys(row.method for row in rows if row.method not in REFERENCES)
    return sorted((_standing(method, rows) for method in methods), key=lambda s: -s.seen["validation"].strict.mean)


def verdicts(rows: Sequence[ModelRow], kind: str) -> list[Verdict]:
    """Compare ours with the best baseline at each of ``SHARES``.

    Args:
        rows: of one family.
        kind: of images, ``"validation"`` or ``"training"``.
    """
    methods = dict.fromkeys(row.method for row in rows if row.method not in REFERENCES)
    return [_verdict(share, {method: _f2(method, rows, VIEWS[kind], share) for method in methods}) for share in SHARES]


def f2_at(values: Sequence[Values], f1: float) -> float:
    """Return f2 of a front at an f1: log f2 is interpolated linearly between the two neighbours that no pair dominates.

    Args:
        values: (f1, f2) of models and mixtures; the dominated ones do not count.
        f1: where. Above the largest f1, it is f2 of the model there, which has forgotten more than was asked for.

    Returns:
        NaN below the least f1.
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
    """Of one number for each seed."""
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
    """The share of a box that is dominated."""
    return hypervolume(values, (f1, f2)) / (f1 * f2)


def _pairs(mine: Sequence[ModelRow], view: View, f1: float) -> float:
    """The least number of pairs with which the models and mixtures so far dominate ``REACHED`` of the strict box."""
    for pairs in sorted({row.pairs for row in mine}):
        if _share((view(row) for row in mine if row.pairs <= pairs), f1, STRICT_F2) >= REACHED:
            return pairs
    return math.nan


def _f2(method: str, rows: Sequence[ModelRow], view: View, share: float) -> list[float]:
    """f2 at a share of the unmodified model's f1, a number for each seed."""
    corners = {row.seed: view(row)[0] for row in rows if row.method == UNMODIFIED}
    return [f2_at([view(row) for row in mine], share * corners[seed]) for seed, mine in _by_seed(method, rows).items()]


def _by_seed(method: str, rows: Sequence[ModelRow]) -> dict[int, list[ModelRow]]:
    mine = [row for row in rows if row.method == method]
    return {seed: [row for row in mine if row.seed == seed] for seed in sorted({row.seed for row in mine})}


def _verdict(share: float, f2: dict[str, list[float]]) -> Verdict:
    """f2 of each method, under each seed."""
    ours = f2.get(OURS, [])
    rivals = {m: fmean(v) for m, v in f2.items() if m != OURS and len(v) == len(ours) and all(map(math.isfinite, v))}
    gets_there = bool(ours) and all(map(math.isfinite, ours))
    if not rivals or not gets_there:
        word = "" if len(ours) < 2 else "ahead" if gets_there else "behind" if rivals else ""
        return Verdict(share, min(rivals, key=rivals.get, default=""), Interval(math.nan, math.nan), word)
    rival = min(rivals, key=rivals.get)
    pairs = zip(ours, f2[rival], strict=True)
    ratio = interval([math.log(max(a, LEAST_F2) / max(b, LEAST_F2)) for a, b in pairs])
    if math.isnan(ratio.half):
        return Verdict(share, rival, ratio, "")
    word = "equal" if abs(ratio.mean) <= ratio.half else "ahead" if ratio.mean < 0 else "behind"
    return Verdict(share, rival, ratio, word)
