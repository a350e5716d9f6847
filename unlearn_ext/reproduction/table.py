"""Tables of results in CSV files, for example one row per model in ``reproduction.csv``."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, get_type_hints

from .._utils.atomic_io import write_table
from ..errors import UserError
from ..unlearning.pareto import Values

__all__ = ["OURS", "REFERENCES", "RETRAINED", "UNMODIFIED", "Cost", "Kept", "Kind", "ModelRow", "Table"]

OURS, UNMODIFIED, RETRAINED = "epsilon-constraint", "unmodified", "retrained"
REFERENCES = (UNMODIFIED, RETRAINED)  # models for comparison, not methods


@dataclass(frozen=True)
class ModelRow:
    """Results of one model; the same plan and seed give the same row, bit for bit.

    Attributes:
        family: family of the model.
        seed: seed of the split into training and validation images, of pretraining, and of unlearning.
        method: ``"epsilon-constraint"``, the name of a baseline, ``"unmodified"``, or ``"retrained"``: a model trained
            like the unmodified one, but on images to retain only.
        point: number of the leg in the method's sweep, from 1, or the formula of the mixture; empty without a sweep.
        value: value of the knob: ε, a weight, or τ; NaN for a mixture and for a method without a knob.
        made_of: ``"trained"``, or shares of legs and of the unmodified model, for example ``"0.333*3 + 0.667*2"``.
        pairs: gradient pairs of the sweep, one per step, after which the model is available.
        f1: forget objective over all training images, in variances of the frozen latents.
        f2: retain objective over all training images, in the same unit.
        f1_validation: forget objective over validation images.
        f2_validation: retain objective over validation images.
    """

    family: str
    seed: int
    method: str
    point: str
    value: float
    made_of: str
    pairs: int
    f1: float
    f2: float
    f1_validation: float
    f2_validation: float

    @property
    def group(self) -> tuple[str, int]:
        """The key by which rows are grouped."""
        return self.family, self.seed

    @property
    def key(self) -> tuple[str, int, str, str]:
        """The unique key of the row."""
        return *self.group, self.method, self.point

    @property
    def values(self) -> Values:
        """(f1, f2) over training images."""
        return self.f1, self.f2

    @property
    def values_validation(self) -> Values:
        """(f1, f2) over validation images."""
        return self.f1_validation, self.f2_validation


@dataclass(frozen=True)
class Cost:
    """Cost of one step of a method; in a separate table, since timings are not reproducible.

    Attributes:
        family: family of the model.
        method: ``"epsilon-constraint"``, or the name of a baseline.
        seconds: wall-clock time.
        memory_mb: peak memory during the steps, in MB: GPU memory, or without a GPU the process's memory; NaN if it
            cannot be measured.
    """

    family: str
    method: str
    seconds: float
    memory_mb: float

    @property
    def group(self) -> str:
        """The key by which rows are grouped."""
        return self.family

    @property
    def key(self) -> tuple[str, str]:
        """The unique key of the row."""
        return self.group, self.method


class Kept(Protocol):
    """A row of a table: a dataclass whose fields, strings and numbers, are the columns."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def group(self) -> Any:
        """The key by which rows are grouped; must be sortable."""

    @property
    def key(self) -> Hashable:
        """The unique key of the row."""


Kind = TypeVar("Kind", bound=Kept)


class Table(Generic[Kind]):
    """A table in a CSV file, which is rewritten atomically by every addition.

    Args:
        path: path of the file; its rows are read if it exists.
        kind: class of the rows, for example :class:`ModelRow`.

    Raises:
        UserError: the file cannot be read as a table of this kind.
    """

    def __init__(self, path: Path, kind: type[Kind]) -> None:
        self.path, self._names = path, [field.name for field in fields(kind)]
        self.rows = {row.key: row for row in _read(path, kind)} if path.exists() else {}

    def add(self, rows: Sequence[Kind]) -> None:
        """Add rows, replace those with equal keys, sort by group, and write the file."""
        self.rows |= {row.key: row for row in rows}
        self.rows = dict(sorted(self.rows.items(), key=lambda item: item[1].group))
        write_table(self.path, self._names, map(astuple, self.rows.values()))


def _read(path: Path, kind: type[Kind]) -> list[Kind]:
    types = get_type_hints(kind)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [kind(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of this experiment: {error}.") from error
