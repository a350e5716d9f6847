"""The folder of a sweep: its tables and pictures, written and read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from .._utils.atomic_io import write_arrays, write_table, write_text
from ..errors import UserError
from .history import History
from .pareto import TRAINED, ParetoFront, ParetoPoint

__all__ = ["CURVES", "FILES", "FRONT", "STEPS", "RunFolder", "read_run", "read_steps", "steps_of", "write_run"]

FRONT = "front.csv"  # written last: where it is, the run is whole
FILES = (FRONT, "history.csv", "metrics.json", "samples.npz")
STEPS = ("point", "step", "epsilon", "f1", "f2", "psi", "lam", "skipped")  # columns of history.csv
_METRICS = {
    (int, float): ("f1_original", "f1_star", "f2_tolerance", "hypervolume", "seconds", "peak_memory_mb", "seed"),
    str: ("version", "family", "dataset", "task", "device", "samples_from"),
    list: ("reference_point",),
    dict: ("settings",),
}
CURVES = ("f1", "f2", "psi", "lam")


@dataclass(frozen=True)
class RunFolder:
    """A run: its points from the most to the least forgotten, their histories, their pictures."""

    path: Path
    metrics: dict[str, Any]
    front: ParetoFront
    history: dict[str, dict[str, np.ndarray]]
    samples: dict[str, np.ndarray]

    @property
    def points(self) -> tuple[ParetoPoint, ...]:
        """The models of the run, from the most to the least forgotten."""
        return self.front.points

    @property
    def worse(self) -> list[ParetoPoint]:
        """The models that another one dominates."""
        return [point for point, dominated in zip(self.points, self.front.dominated, strict=True) if dominated]

    @property
    def span(self) -> float:
        """The reach of f1, from as forgotten as can be to untouched: the unit in which a miss is judged."""
        return float(self.metrics["f1_original"]) - float(self.metrics["f1_star"])

    @property
    def asked(self) -> list[ParetoPoint]:
        """The models at the ε that were asked for; all, where none was."""
        return [point for point in self.points if point.role == "epsilon"] or list(self.points)

    @property
    def trained(self) -> list[ParetoPoint]:
        """The models that were trained, not mixed."""
        return [point for point in self.points if point.made_of == TRAINED]

    @property
    def worst_miss(self) -> float:
        """The largest |f1 − ε| of those that were asked for, in f1's own units."""
        return max(abs(point.miss) for point in self.asked)

    @property
    def worst_miss_unseen(self) -> float:
        """The same on validation images; NaN where the run had none."""
        return max(abs(point.f1_validation - point.epsilon) for point in self.asked)

    @property
    def skipped_steps(self) -> int:
        """Steps that met a number that was not finite, and therefore wrote nothing."""
        return int(sum(curves["skipped"].sum() for curves in self.history.values()))


def write_run(
    folder: Path,
    front: ParetoFront,
    steps: Iterable[Sequence[object]],
    samples: Mapping[str, np.ndarray],
    metrics: Mapping[str, Any],
) -> None:
    """Write the tables and pictures of a sweep, the front last.

    Args:
        folder: of the sweep.
        front: its points.
        steps: rows of ``history.csv``, with the columns ``STEPS``.
        samples: ``"is_forget"`` (bool [N]), and uint8 [N, C, H, W] for every point and what it is compared with.
        metrics: of the sweep; what follows from the points is added.

    Raises:
        UserError: a file cannot be written.
    """
    write_table(folder / "history.csv", STEPS, steps)
    write_arrays(folder / "samples.npz", samples)
    text = json.dumps({**metrics, **_judgement(front, metrics)}, indent=2, ensure_ascii=False)
    write_text(folder / "metrics.json", f"{text}\n")
    front.to_csv(folder / FRONT)


def steps_of(histories: Mapping[str, History]) -> list[list[object]]:
    """Return the rows of ``history.csv`` for the histories of some points."""
    return [[name, *row] for name, history in histories.items() for row in history.rows()]


def read_steps(folder: Path) -> list[list[str]]:
    """Return the rows of ``history.csv``."""
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def _judgement(front: ParetoFront, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what follows from the points: hypervolume, its worst corner, and the largest miss of an ε within reach."""
    original, infimum = metrics["f1_original"], metrics["f1_star"]
    # The worst corner: nothing forgotten, and the retained images treated as the highest boundary treats them.
    reference = (original, max(point.f2 for point in front))
    misses = [abs(point.miss) for point in front if point.role == "epsilon" and infimum <= point.epsilon <= original]
    return {
        "hypervolume": front.hypervolume(reference),
        "reference_point": reference,
        "max_epsilon_miss": max(misses, default=0.0) / (original - infimum),
    }


def read_run(folder: str | Path) -> RunFolder:
    """Read a run's tables and pictures; a sentence says what is missing."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"there is no run folder at {path}.")
    for name in FILES:
        if not (path / name).is_file():
            raise UserError(f"{path} is no finished run: it holds no {name}.")
    front = ParetoFront.from_csv(path / "front.csv")
    try:
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        history = _history(path / "history.csv")
        with np.load(path / "samples.npz", allow_pickle=False) as archive:
            samples = {name: archive[name] for name in archive.files}
        _check_metrics(metrics)
        _check_samples(samples)
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a run: {type(error).__name__}: {error}.") from error
    if not front.points:
        raise UserError(f"{path} is no finished run: its front.csv lists no model.")
    return RunFolder(path, metrics, front, history, samples)


def _check_metrics(metrics: Any) -> None:
    """Raises ``ValueError`` where it is not what a sweep writes."""
    if not isinstance(metrics, dict):
        raise ValueError("metrics.json holds no names with values")
    for kind, names in _METRICS.items():
        for name in names:
            if not isinstance(metrics.get(name), kind):
                raise ValueError(f"metrics.json says {metrics.get(name)!r} of {name}")


def _check_samples(samples: dict[str, np.ndarray]) -> None:
    """Raises ``ValueError`` where they are no pictures, as many of every kind as there are originals."""
    originals, is_forget = samples.get("original"), samples.get("is_forget")
    if originals is None or originals.ndim != 4 or is_forget is None or is_forget.shape != originals.shape[:1]:
        raise ValueError("samples.npz holds no originals, or does not say which are to forget")
    for name, pictures in samples.items():
        if name != "is_forget" and (pictures.shape != originals.shape or pictures.dtype != np.uint8):
            raise ValueError(f"samples.npz holds no such pictures of {name} as of the originals")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _history(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The columns of every point, in the order of its steps."""
    lists: dict[str, dict[str, list[float]]] = {}
    for row in _rows(path):
        columns = lists.setdefault(row["point"], {name: [] for name in ("step", *CURVES, "skipped")})
        for name in ("step", *CURVES):
            columns[name].append(float(row[name]))
        columns["skipped"].append(row["skipped"].lower() in ("1", "1.0", "true"))
    return {point: {name: np.array(values) for name, values in columns.items()} for point, columns in lists.items()}
