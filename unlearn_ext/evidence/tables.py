"""Read the tables of a run folder. Each may be absent: earlier versions wrote fewer, and some are destroyed later."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..unlearning.pareto import ParetoFront, ParetoPoint
from ..unlearning.tables import IMAGES, PER_IMAGE, REQUESTS

__all__ = ["AUDIT", "IMAGES", "METRICS", "REQUESTS", "SOURCES", "TABLES", "metrics_of", "models_of", "rows_of"]

METRICS, SOURCES, AUDIT = "metrics.json", "sources.json", "audit.csv"
# The files whose SHA-256 the evidence contains.
TABLES = ("front.csv", REQUESTS, PER_IMAGE, "history.csv", IMAGES, METRICS, SOURCES, AUDIT)


def finite(value: Any) -> Any:
    """Return a value with None in place of each number that is not finite; JSON has no NaN."""
    if isinstance(value, dict):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(text: str) -> float | None:
    return finite(float(text)) if text.strip() else None


def _count(text: str) -> int | None:
    """Return a number of images; -1 in a table means that it is not known."""
    return int(text) if text.strip() and int(text) >= 0 else None


_COLUMNS: dict[str, dict[str, Callable[[str], Any]]] = {
    IMAGES: dict.fromkeys(("set", "request", "file", "sha256", "used_as", "reason"), str),
    REQUESTS: {
        "point": str, "request": str, "epsilon": _number, "f1_unmodified": _number, "f1": _number,
        "f1_validation": _number, "images": _count, "worst_f1": _number, "worst_file": str, "above": _count,
        "held": str, "since": str,
    },
    AUDIT: {
        "point": str, "audit": str, "measure": str, "forget": _number, "retain": _number, "chance": _number,
        "note": str,
    },
}  # fmt: skip


def rows_of(run: Path, table: str) -> list[dict[str, Any]]:
    """Return the rows of ``images.csv``, ``requests.csv`` or ``audit.csv``; an absent table has none.

    Raises:
        UserError: the table cannot be read.
    """
    try:
        with (run / table).open(newline="", encoding="utf-8") as file:
            return [{name: kind(row[name]) for name, kind in _COLUMNS[table].items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise UserError(f"{run / table} cannot be read: {type(error).__name__}: {error}.") from error


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
