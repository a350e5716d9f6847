"""Read the tables of a run folder. Each may be absent: earlier versions wrote fewer, and some are destroyed later."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..audit.table import FILE as AUDIT
from ..audit.table import AuditRow
from ..data.sets import NamedImage
from ..errors import UserError
from ..unlearning.pareto import ParetoFront, ParetoPoint
from ..unlearning.tables import IMAGES, PER_IMAGE, REQUESTS, RequestRow, read_rows

__all__ = ["AUDIT", "IMAGES", "METRICS", "REQUESTS", "SOURCES", "TABLES", "metrics_of", "models_of", "rows_of"]

METRICS, SOURCES = "metrics.json", "sources.json"
# The files whose SHA-256 the evidence contains.
TABLES = ("front.csv", REQUESTS, PER_IMAGE, "history.csv", IMAGES, METRICS, SOURCES, AUDIT)

_KINDS: dict[str, type[Any]] = {IMAGES: NamedImage, REQUESTS: RequestRow, AUDIT: AuditRow}


def finite(value: Any) -> Any:
    """Return a value with None in place of each number that is not finite; JSON has no NaN."""
    if isinstance(value, dict):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows_of(run: Path, table: str) -> list[dict[str, Any]]:
    """Return the rows of ``images.csv``, ``requests.csv`` or ``audit.csv``; an absent table has none.

    Raises:
        UserError: the table cannot be read.
    """
    rows = [finite(asdict(row)) for row in read_rows(run / table, _KINDS[table])]
    return [{**row, "above": None} if row.get("above") == -1 else row for row in rows]  # -1: not known


def models_of(run: Path) -> list[dict[str, Any]]:
    """Return the points of ``front.csv``, from the most to the least forgotten.

    Raises:
        UserError: the table is absent or cannot be read.
    """
    return [_point(point) for point in ParetoFront.from_csv(run / "front.csv")]


def _point(point: ParetoPoint) -> dict[str, Any]:
    names = ("name", "role", "epsilon", "f1", "f2", "f1_validation", "f2_validation", "made_of")
    return {name: finite(getattr(point, name)) for name in names}


def metrics_of(run: Path) -> Mapping[str, Any]:
    """Return the content of ``metrics.json``, with None in place of NaN.

    Raises:
        UserError: the file is absent, or not a JSON object.
    """
    try:
        metrics = json.loads((run / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{run} is not a finished run: its {METRICS} cannot be read: {error}.") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{run} is not a finished run: its {METRICS} is not a JSON object.")
    return finite(metrics)
