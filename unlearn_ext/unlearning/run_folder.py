"""Write and read the folder of a run or a sweep: its tables and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from .._utils.atomic_io import write_arrays, write_table, write_text
from ..data.sets import FORGET, NamedImage
from ..errors import UserError
from .history import History
from .pareto import TRAINED, ParetoFront, ParetoPoint
from .pictures import ALL, CHOICES, IS_FORGET
from .tables import IMAGES, PER_IMAGE, REQUESTS, ImageF1, RequestRow, read_rows, write_rows

__all__ = [
    "CURVES", "FILES", "FRONT", "SAMPLES", "STEPS", "UNSEEN", "RunFolder", "is_sweep", "read_run", "read_steps",
    "steps_of", "write_run",
]  # fmt: skip

FRONT = "front.csv"  # written last: if it exists, the run is complete
SAMPLES, UNSEEN = "samples.npz", "validation.npz"  # pictures of training images, and of held-out images if any
FILES = (FRONT, "history.csv", "metrics.json", SAMPLES)
STEPS = ("point", "step", "epsilon", "f1", "f2", "psi", "lam", "skipped", "request")  # columns of history.csv
_METRICS: dict[type | tuple[type, ...], tuple[str, ...]] = {
    (int, float): ("f1_original", "seconds", "peak_memory_mb", "seed"),
    (int, float, type(None)): ("f1_star", "f2_tolerance", "hypervolume"),  # None for a single model
    str: ("version", "family", "dataset", "task", "device", "samples_from"),
    (list, type(None)): ("reference_point",),
    dict: ("settings",),
}
CURVES = ("f1", "f2", "psi", "lam")


@dataclass(frozen=True)
class RunFolder:
    """The content of a run folder: points from the most to the least forgotten, their histories and pictures.

    Attributes:
        path: the folder.
        metrics: content of ``metrics.json``.
        front: the points.
        history: columns of ``history.csv`` of each point that was trained, for the first request.
        samples: pictures of training images, by each point, and of what they are compared with.
        validation: the same of held-out images; empty if there are none, as in the folders of earlier versions.
        images: every image that was named for the run; empty for runs of earlier versions, as the next two.
        requests: a row for each model and request.
        per_image: f1 of each training image to forget, for the models at a requested ε.
    """

    path: Path
    metrics: dict[str, Any]
    front: ParetoFront
    history: dict[str, dict[str, np.ndarray]]
    samples: dict[str, np.ndarray]
    validation: dict[str, np.ndarray] = field(default_factory=dict)
    images: list[NamedImage] = field(default_factory=list)
    requests: list[RequestRow] = field(default_factory=list)
    per_image: list[ImageF1] = field(default_factory=list)

    @property
    def pictures(self) -> str:
        """Which pictures the folder holds, one of ``CHOICES``; earlier versions kept all."""
        return str(self.metrics.get("pictures", ALL))

    @property
    def points(self) -> tuple[ParetoPoint, ...]:
        """The models of the run, from the most to the least forgotten."""
        return self.front.points

    @property
    def worse(self) -> list[ParetoPoint]:
        """The models that another model dominates."""
        return [point for point, dominated in zip(self.points, self.front.dominated, strict=True) if dominated]

    @property
    def undertrained(self) -> list[ParetoPoint]:
        """The trained models that another model dominates: at the constrained optimum none could."""
        return [point for point in self.worse if point.made_of == TRAINED]

    @property
    def span(self) -> float:
        """The range of f1 from the most forgotten to the unmodified model; misses are stated as fractions of it.

        A run to one ε has no most forgotten model: its range begins at 0.
        """
        return float(self.metrics["f1_original"]) - float(self.metrics["f1_star"] or 0.0)

    @property
    def is_sweep(self) -> bool:
        """Whether the models are those of a sweep, and not of a run to one ε."""
        return is_sweep(self.metrics)

    def requests_of(self, point: str) -> list[RequestRow]:
        """Return the rows of a model in ``requests.csv``."""
        return [row for row in self.requests if row.point == point]

    @property
    def asked(self) -> list[ParetoPoint]:
        """The models at a requested ε; all models if no ε was requested."""
        return [point for point in self.points if point.role == "epsilon"] or list(self.points)

    @property
    def trained(self) -> list[ParetoPoint]:
        """The models that were trained, not mixed."""
        return [point for point in self.points if point.made_of == TRAINED]

    @property
    def worst_miss(self) -> float:
        """The largest |f1 − ε| of the models in ``asked``, in units of f1."""
        return max(abs(point.miss) for point in self.asked)

    @property
    def worst_miss_unseen(self) -> float:
        """The largest |f1 − ε| on validation images; NaN if the run had none."""
        return max(abs(point.f1_validation - point.epsilon) for point in self.asked)

    @property
    def skipped_steps(self) -> int:
        """Number of steps that changed nothing because a value was not finite."""
        return int(sum(curves["skipped"].sum() for curves in self.history.values()))


def is_sweep(metrics: Mapping[str, Any]) -> bool:
    """Return whether ``metrics.json`` is that of a sweep; earlier versions wrote it for sweeps only."""
    return metrics.get("command", "sweep") == "sweep"


def write_run(
    folder: Path,
    front: ParetoFront,
    steps: Iterable[Sequence[object]],
    pictures: Mapping[str, Mapping[str, np.ndarray]],
    metrics: Mapping[str, Any],
    *,
    listed: Iterable[NamedImage],
    requests: Iterable[RequestRow],
    per_image: Iterable[ImageF1],
) -> None:
    """Write the tables and pictures of a run or a sweep, the front last.

    Args:
        folder: folder of the run.
        front: points of the run.
        steps: rows of ``history.csv``, with the columns ``STEPS``.
        pictures: by name of the file, ``SAMPLES`` or ``UNSEEN``: ``"is_forget"`` (bool [N]), and pictures, uint8
            [N, C, H, W], of every point and of the images that it is compared with.
        metrics: metrics of the run; those that follow from the points are added.
        listed: rows of ``images.csv``.
        requests: rows of ``requests.csv``.
        per_image: rows of ``per_image.csv``.

    Raises:
        UserError: a file cannot be written.
    """
    write_rows(folder / IMAGES, NamedImage, listed)
    write_rows(folder / REQUESTS, RequestRow, requests)
    write_rows(folder / PER_IMAGE, ImageF1, per_image)
    write_table(folder / "history.csv", STEPS, steps)
    for name, samples in pictures.items():
        write_arrays(folder / name, samples)
    text = json.dumps({**metrics, **_judgement(front, metrics)}, indent=2, ensure_ascii=False)
    write_text(folder / "metrics.json", f"{text}\n")
    front.to_csv(folder / FRONT)


def steps_of(histories: Mapping[tuple[str, str], History]) -> list[list[object]]:
    """Return the rows of ``history.csv`` for the histories of some points and requests."""
    return [[name, *row, request] for (name, request), history in histories.items() for row in history.rows()]


def read_steps(folder: Path) -> list[list[str]]:
    """Return the rows of ``history.csv``; those of earlier versions get the request that they had no column for."""
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        return [row if len(row) == len(STEPS) else [*row, FORGET] for row in list(csv.reader(file))[1:]]


def _judgement(front: ParetoFront, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of the points: hypervolume, its reference point, and the largest miss of a reachable ε.

    A single model has none of them.
    """
    if not is_sweep(metrics):
        return {"hypervolume": None, "reference_point": None, "max_epsilon_miss": None}
    original, infimum = metrics["f1_original"], metrics["f1_star"]
    # The reference point is the worst corner: f1 of the unmodified model, and the largest f2 of the front.
    reference = (original, max(point.f2 for point in front))
    misses = [abs(point.miss) for point in front if point.role == "epsilon" and infimum <= point.epsilon <= original]
    return {
        "hypervolume": front.hypervolume(reference),
        "reference_point": reference,
        "max_epsilon_miss": max(misses, default=0.0) / (original - infimum),
    }


def read_run(folder: str | Path) -> RunFolder:
    """Read a run's tables and pictures.

    Raises:
        UserError: the folder or a file does not exist, or cannot be read; the message says which.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"there is no run folder at {path}.")
    for name in FILES:
        if not (path / name).is_file():
            raise UserError(f"{path} is not a finished run: it contains no {name}.")
    front = ParetoFront.from_csv(path / "front.csv")
    try:
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        history = _history(path / "history.csv")
        samples = _samples(path / SAMPLES)
        validation = _samples(path / UNSEEN) if (path / UNSEEN).exists() else {}
        _check_metrics(metrics)
        images = read_rows(path / IMAGES, NamedImage)
        requests, per_image = read_rows(path / REQUESTS, RequestRow), read_rows(path / PER_IMAGE, ImageF1)
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a run: {type(error).__name__}: {error}.") from error
    if not front.points:
        raise UserError(f"{path} is not a finished run: its front.csv lists no model.")
    return RunFolder(path, metrics, front, history, samples, validation, images, requests, per_image)


def _check_metrics(metrics: Any) -> None:
    """Raise ``ValueError`` if the metrics are not those of a sweep."""
    if not isinstance(metrics, dict):
        raise ValueError("metrics.json is not a JSON object")
    for kind, names in _METRICS.items():
        for name in names:
            if not isinstance(metrics.get(name), kind):
                raise ValueError(f"metrics.json has no valid {name}: {metrics.get(name)!r}")
    if (pictures := metrics.get("pictures", ALL)) not in CHOICES:
        raise ValueError(f"metrics.json has no valid pictures: {pictures!r}")


def _samples(path: Path) -> dict[str, np.ndarray]:
    """Read pictures; raise ``ValueError`` if they differ in number or shape from the originals, or are no pictures."""
    with np.load(path, allow_pickle=False) as archive:
        samples = {name: archive[name] for name in archive.files}
    originals, is_forget = samples.get("original"), samples.get(IS_FORGET)
    if originals is None or originals.ndim != 4 or is_forget is None or is_forget.shape != originals.shape[:1]:
        raise ValueError(f"{path.name} has no valid arrays `original` and `is_forget`")
    for name, pictures in samples.items():
        if name != IS_FORGET and (pictures.shape != originals.shape or pictures.dtype != np.uint8):
            raise ValueError(f"the array {name} in {path.name} is not uint8, or differs in shape from `original`")
    return samples


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _history(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the columns of every point for its first request, in the order of its steps."""
    lists: dict[str, dict[str, list[float]]] = {}
    first: dict[str, str | None] = {}
    for row in _rows(path):
        if first.setdefault(row["point"], row.get("request")) != row.get("request"):
            continue
        columns = lists.setdefault(row["point"], {name: [] for name in ("step", *CURVES, "skipped")})
        for name in ("step", *CURVES):
            columns[name].append(float(row[name]))
        columns["skipped"].append(row["skipped"].lower() in ("1", "1.0", "true"))
    return {point: {name: np.array(values) for name, values in columns.items()} for point, columns in lists.items()}
