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
_FORMER_ROLES = {"boundary-high": MOST_FORGOTTEN, "boundary-low": LEAST_FORGOTTEN}  # in earlier versions' tables


def dominates(a: Values, b: Values) -> bool:
    """Return whether a is no worse than b in both values and better in one; False if a value is NaN."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def nondominated(values: Sequence[Values]) -> list[bool]:
    """Return for each pair of values whether no other pair dominates it; equal pairs do not dominate each other."""
    return [not any(dominates(other, value) for other in values) for value in values]


def hypervolume(values: Iterable[Values], reference: Values) -> float:
    """Return the exact area that the points dominate up to the reference point (Zitzler & Thiele, 1998).

    Args:
        values: pairs of objective values, which may be dominated; pairs that are not better than the reference in both
            values add nothing.
        reference: the reference point, the worst corner.
    """
    area, ceiling = 0.0, reference[1]
    for f1, f2 in sorted(value for value in values if not any(map(math.isnan, value))):
        if f1 < reference[0] and f2 < ceiling:
            area += (reference[0] - f1) * (ceiling - f2)
            ceiling = f2
    return area


@dataclass(frozen=True)
class ParetoPoint:
    """One unlearned model of a sweep; objectives are in variances of the frozen latents over the retain set.

    Attributes:
        name: name of the point and of its folder: ``"most-forgotten"``, ``"eps-0.3000"``, ``"least-forgotten"``.
        role: ``"most-forgotten"``, ``"anchor"``, ``"epsilon"`` or ``"least-forgotten"``.
        epsilon: requested bound on f1.
        f1: what is left of the forgotten, over the whole training part.
        f2: damage to the retained, over the whole training part.
        f1_validation: f1 over held-out images of the forget classes.
        f2_validation: f2 over held-out images of the retain classes.
        steps: optimizer steps taken for this point, after its warm start.
        seconds: wall-clock time of these steps and of the evaluation.
        made_of: ``"trained"``, or the mixture, such as ``"0.25*anchor-0.2613 + 0.75*anchor-0.6271"``.
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
        """f1 − ε: positive if the model ended above its ε, negative if below."""
        return self.f1 - self.epsilon

    @property
    def label(self) -> str:
        """A readable name of the point."""
        names = {MOST_FORGOTTEN: "most forgotten", LEAST_FORGOTTEN: "least forgotten"}
        return names.get(self.role, f"ε = {self.epsilon:.3g}")


@dataclass(frozen=True)
class ParetoFront:
    """The points of a sweep, from the most to the least forgotten.

    Attributes:
        points: the points, sorted by f1.
        dial: function that returns a model at an ε; None if the front was read from a table.
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
        """Return a model at any ε, see :meth:`unlearn_ext.unlearning.dial.Dial.at`.

        Raises:
            UserError: the front was read from a table, which contains no models.
        """
        if self.dial is None:
            raise UserError(
                "this front was read from a table, so it has no models: use the front that `sweep` returns; with "
                "resume=True, `sweep` also returns the front of a finished run."
            )
        return self.dial(epsilon)

    @property
    def dominated(self) -> list[bool]:
        """For each point, whether another one dominates it."""
        return [not free for free in nondominated([point.values for point in self.points])]

    def hypervolume(self, reference: Values) -> float:
        """Return the area that the front dominates up to ``reference`` = (f1, f2)."""
        return hypervolume((point.values for point in self.points), reference)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line per point, at full precision, with the column ``dominated`` (0 or 1) at the end."""
        marked = zip(self.points, self.dominated, strict=True)
        rows = ([*(getattr(point, column) for column in _COLUMNS), int(dominated)] for point, dominated in marked)
        write_table(Path(path), [*_COLUMNS, "dominated"], rows)

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> ParetoFront:
        """Read a file that :meth:`to_csv` wrote.

        Raises:
            UserError: the file does not exist or is not a front, or the name of a point is not a plain folder name.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            front = cls(tuple(ParetoPoint(**{c: _COLUMNS[c](row[c]) for c in _COLUMNS}) for row in map(_whole, rows)))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{Path(path)} cannot be read as a Pareto front: {error}.") from error
        for point in front:
            if not re.fullmatch(r"\w[\w.-]*", point.name):
                raise UserError(f"{Path(path)} cannot be read as a Pareto front: {point.name!r} is not a point name.")
        return front


def _whole(row: dict[str, str]) -> dict[str, str]:
    """Return a row in the current format; convert rows of earlier versions."""
    return {"made_of": TRAINED, **row, "role": _FORMER_ROLES.get(row["role"], row["role"])}


def point_name(epsilon: float) -> str:
    """Return the name of the point at ε and of its folder, such as ``eps-0.3000``."""
    return f"eps-{epsilon:.4f}"


_TYPES = {"str": str, "float": float, "int": int}
_COLUMNS = {field.name: _TYPES[str(field.type)] for field in fields(ParetoPoint)}
