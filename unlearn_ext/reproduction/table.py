"""What was measured: rows of one kind in a file, such as a row a model in ``reproduction.csv``."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, get_type_hints

from .._utils.atomic_io import write_table
from ..errors import UserError
from ..unlearning.pareto import Values

__all__ = ["OURS", "REFERENCES", "RETRAINED", "UNMODIFIED", "Cost", "Kept", "Kind", "ModelRow", "Table"]

OURS, UNMODIFIED, RETRAINED = "epsilon-constraint", "unmodified", "retrained"
REFERENCES = (UNMODIFIED, RETRAINED)  # no methods


@dataclass(frozen=True)
class ModelRow:
    """One model; the same plan and seed give the same row, bit for bit.

    Attributes:
        family: of the model.
        seed: of the division into training and validation images, of the pretrained model, and of training.
        method: ``"epsilon-constraint"``, the name of a baseline, ``"unmodified"``, or ``"retrained"``: a model that the
            recipe of the unmodified one trained on images to retain alone.
        point: number of the leg in the method's sweep, from 1, or the mixture; nothing where there is no sweep.
        value: of the knob: ε, a weight, τ; NaN of a mixture and where there is none.
        made_of: ``"trained"``, or shares of legs and of the unmodified model, such as ``"0.333*3 + 0.667*2"``.
        pairs: of gradients that the sweep had taken when the model could be made, one a step.
        f1: forget objective over all training images, in variances of the frozen latents.
        f2: retain objective, likewise.
        f1_validation: forget objective over validation images.
        f2_validation: retain objective, likewise.
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
        """What rows that stand together share."""
        return self.family, self.seed

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What no two rows share."""
        return *self.group, self.method, self.point

    @property
    def values(self) -> Values:
        """(f1, f2) of training images."""
        return self.f1, self.f2

    @property
    def values_validation(self) -> Values:
        """(f1, f2) of validation images."""
        return self.f1_validation, self.f2_validation


@dataclass(frozen=True)
class Cost:
    """Of one step of a method; no two measurements agree, so it is kept apart from the rows.

    Attributes:
        family: of the model.
        method: ``"epsilon-constraint"``, or the name of a baseline.
        seconds: of wall clock.
        memory_mb: peak during the steps: of the GPU's memory, or of this process's where there is none.
    """

    family: str
    method: str
    seconds: float
    memory_mb: float

    @property
    def group(self) -> str:
        """What rows that stand together share."""
        return self.family

    @property
    def key(self) -> tuple[str, str]:
        """What no two rows share."""
        return self.group, self.method


class Kept(Protocol):
    """A dataclass of texts and numbers, its columns."""

    __dataclass_fields__: dict[str, Any]

    @property
    def group(self) -> Any:
        """What rows that stand together share; groups can be put in order."""

    @property
    def key(self) -> Hashable:
        """What no two rows share."""


Kind = TypeVar("Kind", bound=Kept)


class Table(Generic[Kind]):
    """Rows in a file, which is whole after every addition.

    Args:
        path: of the file; rows that are there are read.
        kind: of the rows, such as :class:`ModelRow`.

    Raises:
        UserError: the file is not such a table.
    """

    def __init__(self, path: Path, kind: type[Kind]) -> None:
        self.path, self._names = path, [field.name for field in fields(kind)]
        self.rows = {row.key: row for row in _read(path, kind)} if path.exists() else {}

    def add(self, rows: Sequence[Kind]) -> None:
        """Each joins its group; groups stand in order, whenever they came."""
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
