"""The table of the audits, `audit.csv` in the folder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..unlearning.tables import read_rows, write_rows

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


def write_audit(run: Path, rows: Sequence[AuditRow]) -> None:
    """Write the table to the folder of a run.

    Raises:
        UserError: it cannot be written.
    """
    write_rows(run / FILE, AuditRow, rows)


def read_audit(run: Path) -> list[AuditRow]:
    """Return the rows of the table in the folder of a run; none if the run was not audited.

    Raises:
        UserError: the table cannot be read.
    """
    return read_rows(run / FILE, AuditRow)
