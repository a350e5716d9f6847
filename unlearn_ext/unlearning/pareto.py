"""Pareto dominance, the front, and its hypervolume; both objectives are minimised."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .._utils.atomic_io import write_table
from ..errors import UserError

__all__ = [
    "ANCHOR",
    "EPSILON",
    "LEAST_FORGOTTEN",
    "MOST_FORGOTTEN",
    "TRAINED",
    "ParetoFront",
    "ParetoPoint",
    "Values",
    "dominates",
    "hypervolume",
    "nondominated",
    "point_name",
]

Values = tuple[float, float]
TRAINED = "trained"
MOST_FORGOTTEN, ANCHOR, EPSILON, LEAST_FORGOTTEN = "most-forgotten", "anchor", "epsilon", "least-forgotten"  # roles
_FORMER_ROLES = {"boundary-high": MOST_FORGOTTEN, "boundary-low": LEAST_FORGOTTEN}  # in tables of earlier versions


def dominates(a: Values, b: Values) -> bool:
    """True when a is nowhere worse than b and somewhere better. NaN neither dominates nor is dominated."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def nondominated(values: Sequence[Values]) -> list[bool]:
    """For each pair of objective values: does no other pair dominate it? Equal pairs do not dominate each other."""
    return [not any(dominates(other, value) for other in values) for value in values]


def hypervolume(values: Iterable[Values], reference: Values) -> float:
    """The area that at least one point dominates within the reference point (Zitzler & Thiele, 1998), exact in 2-D.

    Args:
        values: pairs of objective values, dominated ones allowed; those not better than the reference add nothing.
        reference: the worst corner.
    """
    area, ceiling = 0.0, reference[1]
    for f1, f2 in sorted(value for value in values if not any(map(math.isnan, value))):
        if f1 < reference[0] and f2 < ceiling:
            area += (reference[0] - f1) * (ceiling - f2)
            ceiling = f2
    return area


@dataclass(frozen=True)
class ParetoPoint:
    """One unlearned model of a sweep. Objectives are in variances of the frozen latents over the retain set.

    Attributes:
        name: of the point and of its folder: ``"most-forgotten"``, ``"eps-0.3000"``, ``"least-forgotten"``.
        role: ``"most-forgotten"``, ``"anchor"``, ``"epsilon"`` or ``"least-forgotten"``.
        epsilon: bound on f1 that was asked for.
        f1: forget objective over the whole training part.
        f2: retain objective over the whole training part.
        f1_validation: forget objective over held-out images of the forget classes.
        f2_validation: retain objective over held-out images of the retain classes.
        steps: optimizer steps taken for this point, after its warm start.
        seconds: wall clock of these steps and their evaluation.
        made_of: ``"trained"``, or the models that it is a mixture of, such as
            ``"0.25*anchor-0.2613 + 0.75*anchor-0.6271"``.
    """

    name: str
    role: str
    epsilon: float
    f1: float
    f2: float
    f1_validation: float
    f2_validation: float
    steps: int
    seconds: float
    made_of: str = TRAINED

    @property
    def values(self) -> Values:
        """(f1, f2) over the training part."""
        return self.f1, self.f2

    @property
    def miss(self) -> float:
        """How far above (+) or below (−) its ε the model ended."""
        return self.f1 - self.epsilon

    @property
    def label(self) -> str:
        """The point as a person would call it."""
        names = {MOST_FORGOTTEN: "most forgotten", LEAST_FORGOTTEN: "least forgotten"}
        return names.get(self.role, f"ε = {self.epsilon:.3g}")


@dataclass(frozen=True)
class ParetoFront:
    """The points of a sweep, from the highest completeness (least f1) to the lowest.

    Attributes:
        points: in this order.
        dial: makes a model at an ε; None of a front that was read from a table alone.
    """

    points: tuple[ParetoPoint, ...]
    dial: Callable[[float], Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(sorted(self.points, key=lambda point: point.f1)))

    def __iter__(self) -> Iterator[ParetoPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def at(self, epsilon: float) -> Any:
        """Return a model at any ε, as :meth:`unlearn_ext.unlearning.dial.Dial.at` makes it.

        Raises:
            UserError: the front was read from a table, which holds no models.
        """
        if self.dial is None:
            raise UserError(
                "this front was read from a table, so it has no models: take the front that `sweep` returns; with "
                "resume=True, it returns that of a finished run."
            )
        return self.dial(epsilon)

    @property
    def dominated(self) -> list[bool]:
        """For each point: does another one dominate it?"""
        return [not free for free in nondominated([point.values for point in self.points])]

    def hypervolume(self, reference: Values) -> float:
        """Area dominated by the front within ``reference`` = (f1, f2)."""
        return hypervolume((point.values for point in self.points), reference)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line a point, at full precision, with the column ``dominated`` (0 or 1) at the end."""
        marked = zip(self.points, self.dominated, strict=True)
        rows = ([*(getattr(point, column) for column in _COLUMNS), int(dominated)] for point, dominated in marked)
        write_table(Path(path), [*_COLUMNS, "dominated"], rows)

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> ParetoFront:
        """Read what :meth:`to_csv` wrote.

        Raises:
            UserError: no such file, or not a front; the name of a point is that of a folder beside the file, and no
                path that leads elsewhere.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            front = cls(tuple(ParetoPoint(**{c: _COLUMNS[c](row[c]) for c in _COLUMNS}) for row in map(_whole, rows)))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{Path(path)} cannot be read as a Pareto front: {error}.") from error
        for point in front:
            if not re.fullmatch(r"\w[\w.-]*", point.name):
                raise UserError(f"{Path(path)} cannot be read as a Pareto front: {point.name!r} is no point's name.")
        return front


def _whole(row: dict[str, str]) -> dict[str, str]:
    """Return a row as this version writes it, also of a table of an earlier version."""
    return {"made_of": TRAINED, **row, "role": _FORMER_ROLES.get(row["role"], row["role"])}


def point_name(epsilon: float) -> str:
    """``eps-0.3000``: the name of the point at ε, and of its folder."""
    return f"eps-{epsilon:.4f}"


_TYPES = {"str": str, "float": float, "int": int}
_COLUMNS = {field.name: _TYPES[field.type] for field in fields(ParetoPoint)}
