"""Read the folder that a sweep wrote."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

FILES = ("front.csv", "history.csv", "metrics.json", "samples.npz")
CURVES = ("f1", "f2", "psi", "lam")


@dataclass(frozen=True)
class Point:
    """One unlearned model: what was asked of it and what it reached."""

    name: str
    role: str
    epsilon: float | None
    f1: float
    f2: float
    f1_validation: float
    f2_validation: float
    steps: int
    seconds: float
    dominated: bool

    @property
    def miss(self) -> float | None:
        """How far above (+) or below (−) its ε the model ended; None where no ε was asked."""
        return None if self.epsilon is None else self.f1 - self.epsilon

    @property
    def label(self) -> str:
        """The point as a person would call it."""
        if self.role == "epsilon" and self.epsilon is not None:
            return f"ε = {self.epsilon:.3g}"
        return {"boundary-high": "most forgotten", "boundary-low": "least forgotten"}.get(self.role, self.name)


@dataclass(frozen=True)
class RunFolder:
    """A run: its points from the most to the least forgotten, their histories, their pictures."""

    path: Path
    metrics: dict[str, Any]
    points: list[Point]
    history: dict[str, dict[str, np.ndarray]]
    samples: dict[str, np.ndarray]

    @property
    def span(self) -> float:
        """The reach of f1, from as forgotten as can be to untouched: the unit in which a miss is judged."""
        return float(self.metrics["f1_original"]) - float(self.metrics["f1_star"])

    @property
    def worst_miss(self) -> float:
        """The largest |f1 − ε|, in f1's own units."""
        return max((abs(point.miss) for point in self.points if point.miss is not None), default=0.0)

    @property
    def worst_miss_unseen(self) -> float:
        """The same on validation images; NaN where the run had none."""
        return max((abs(p.f1_validation - p.epsilon) for p in self.points if p.epsilon is not None), default=math.nan)

    @property
    def skipped_steps(self) -> int:
        """Steps that met a number that was not finite, and therefore wrote nothing."""
        return int(sum(curves["skipped"].sum() for curves in self.history.values()))


def read_run(folder: str | Path) -> RunFolder:
    """Read a run's tables and pictures; a sentence says what is missing."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"there is no run folder at {path}.")
    for name in FILES:
        if not (path / name).is_file():
            raise UserError(f"{path} is no finished run: it holds no {name}.")
    try:
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        points = sorted((_point(row) for row in _rows(path / "front.csv")), key=lambda point: point.f1)
        history = _history(path / "history.csv")
        with np.load(path / "samples.npz", allow_pickle=False) as archive:
            samples = {name: archive[name] for name in archive.files}
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} cannot be read as a run: {type(error).__name__}: {error}.") from error
    if not points:
        raise UserError(f"{path} is no finished run: its front.csv lists no model.")
    return RunFolder(path, metrics, points, history, samples)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _point(row: dict[str, str]) -> Point:
    return Point(
        name=row["name"],
        role=row["role"],
        epsilon=float(row["epsilon"]) if row["epsilon"] not in ("", "nan", "None") else None,
        f1=float(row["f1"]),
        f2=float(row["f2"]),
        f1_validation=float(row["f1_validation"]),
        f2_validation=float(row["f2_validation"]),
        steps=int(row["steps"]),
        seconds=float(row["seconds"]),
        dominated=row["dominated"].lower() in ("1", "true"),
    )


def _history(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The columns of every point, in the order of its steps."""
    lists: dict[str, dict[str, list[float]]] = {}
    for row in _rows(path):
        columns = lists.setdefault(row["point"], {name: [] for name in ("step", *CURVES, "skipped")})
        for name in ("step", *CURVES):
            columns[name].append(float(row[name]))
        columns["skipped"].append(row["skipped"].lower() in ("1", "1.0", "true"))
    return {point: {name: np.array(values) for name, values in columns.items()} for point, columns in lists.items()}
