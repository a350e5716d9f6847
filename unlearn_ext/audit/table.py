"""The table of the audits, `audit.csv` in the folder of a run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from .._utils.atomic_io import write_table
from ..errors import UserError

__all__ = ["FILE", "AuditRow", "read_audit", "write_audit"]

FILE = "audit.csv"


@dataclass(frozen=True)
class AuditRow:
    """One measure of one model; see :class:`unlearn_ext.audit.protocol.Finding` for the columns after ``audit``.

    Attributes:
        point: a point of the run, ``"unmodified"`` or ``"retrained"``.
        audit: name of the audit.
        measure: what was measured.
        forget: the number for images to forget, or NaN.
        retain: the number for images to retain, or NaN.
        chance: the number for images to forget without any information from the model, or NaN.
        note: confidence intervals and numbers of images, or why the audit was not run.
    """

    point: str
    audit: str
    measure: str
    forget: float
    retain: float
    chance: float
    note: str


_NUMBERS = ("forget", "retain", "chance")
_COLUMNS: dict[str, Any] = {name: float if name in _NUMBERS else str for name in AuditRow.__annotations__}


def write_audit(run: Path, rows: Sequence[AuditRow]) -> None:
    """Write the table to the folder of a run.

    Raises:
        UserError: it cannot be written.
    """
    write_table(run / FILE, list(_COLUMNS), map(astuple, rows))


def read_audit(run: Path) -> list[AuditRow]:
    """Return the rows of the table in the folder of a run; none if the run was not audited.

    Raises:
        UserError: the table cannot be read.
    """
    path = run / FILE
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                AuditRow(**{name: kind(row[name]) for name, kind in _COLUMNS.items()}) for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as the table of an audit: {error}.") from error
