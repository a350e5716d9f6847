"""Evaluates and saves the models of a sweep, and records them as points."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._utils.atomic_io import save_folder
from .._utils.process_memory import peak_mb
from .._version import __version__
from ..models import I2IModel
from .dial import Unlearned
from .encoder import Encoder
from .history import History
from .journal import Journal
from .objectives import Objectives
from .outcome import warn_if_skipped
from .pareto import MOST_FORGOTTEN, ParetoFront, ParetoPoint
from .pictures import BLURRED, Pictures
from .progress import Callback, OnStep, reporter
from .run_folder import SAMPLES, VALIDATION, steps_of, write_run
from .schedule import SCHEDULE, steps_per_anchor

__all__ = ["Recorder"]

_TRAINING, _VALIDATION = 6, 3  # pictures of each side


class Recorder:
    """A recorder of the points of a sweep.

    Args:
        model: the unmodified model.
        objectives: objectives that were frozen from it.
        held_out: forget and retain images for validation; without them the validation columns are NaN.
        out: folder to write to; None to write nothing.
        progress: called at most ten times per second.
        journal: provides the results of an earlier process.
        pictures: which pictures to keep, one of :data:`unlearn_ext.unlearning.pictures.CHOICES`.

    Attributes:
        stages: number of points that the sweep will have, for progress reports.
        points: points recorded so far.
        histories: training history of each point, by name.
        pictures: by name of their file, pictures of training images, and of held-out images if there are any.
        f1_original: f1 of the unmodified model.
        f2_original: f2 of the unmodified model; 0 unless targets are computed for each minibatch.
    """

    def __init__(
        self,
        model: I2IModel,
        objectives: Objectives,
        held_out: tuple[torch.Tensor, torch.Tensor] | None,
        out: str | PathLike[str] | None,
        progress: Callback | None,
        journal: Journal,
        pictures: str = BLURRED,
    ) -> None:
        self._start, self._journal = time.monotonic(), journal
        self._original, self._objectives, self._progress = model, objectives, progress
        self._validation = objectives.held_out(*held_out) if held_out else None
        self._out = None if out is None else Path(out)
        self.f1_original, self.f2_original = journal.recall(lambda: objectives.evaluate(objectives.frozen))
        self.histories: dict[str, History] = {}
        self.points: list[ParetoPoint] = []
        self.stages = 0
        self._choice, task = pictures, objectives.forget.task
        shown = {SAMPLES: (objectives.forget.images[:_TRAINING], objectives.retain.images[:_TRAINING])}
        if held_out:
            shown[VALIDATION] = (held_out[0][:_VALIDATION], held_out[1][:_VALIDATION])
        self.pictures = {name: Pictures(*sides, task, pictures) for name, sides in shown.items()}
        for kept in self.pictures.values():
            kept.add("unmodified", kept.made_by(model))

    def reporting(self, name: str) -> tuple[History, OnStep | None]:
        """Return the history and the progress callback of a point."""
        history = self.histories.setdefault(name, History())
        return history, reporter(self._progress, name, len(self.points), self.stages)

    def record(self, name: str, role: str, epsilon: float, made: Unlearned, start: float) -> None:
        """Evaluate and save a model, and record it as a point.

        Args:
            name: name of the point and of its folder.
            role: role of the point, see :class:`unlearn_ext.unlearning.pareto.ParetoPoint`.
            epsilon: the requested ε.
            made: the model.
            start: time at which work on it began, from ``time.monotonic``.
        """
        validation, pictures, seconds = self._journal.recall(lambda: self._judged_and_saved(name, made.model, start))
        for kept, made_by_it in zip(self.pictures.values(), pictures, strict=True):
            kept.add(name, made_by_it)
        steps = len(self.histories.get(name, ()))
        self.points.append(
            ParetoPoint(name, role, epsilon, made.f1, made.f2, *validation, steps, seconds, made.made_of)
        )

    def finish(self, front: ParetoFront, dataset: str) -> None:
        """Write the tables and pictures of a finished sweep, if there is a folder to write to.

        Args:
            front: points of the sweep.
            dataset: description of the images, for ``metrics.json``.
        """
        if self._out is not None:
            pictures = {name: kept.samples for name, kept in self.pictures.items()}
            write_run(self._out, front, steps_of(self.histories), pictures, self._metrics(dataset))
        warn_if_skipped(self.histories.values())
        self._journal.finish()

    def _judged_and_saved(
        self, name: str, model: I2IModel, start: float
    ) -> tuple[tuple[float, float], list[torch.Tensor], float]:
        """Save a model; return (f1, f2) for held-out images, its pictures, and the seconds since the start."""
        encode = Encoder(model, self._objectives.settings)
        validation = self._validation.evaluate(encode) if self._validation else (math.nan, math.nan)
        pictures = [kept.made_by(model) for kept in self.pictures.values()]
        if self._out is not None:
            save_folder(self._out / name, model.save_pretrained, replace=True)
        return validation, pictures, time.monotonic() - start

    def _metrics(self, dataset: str) -> dict[str, Any]:
        settings = self._objectives.settings
        return {
            "version": __version__,
            "family": self._original.family,
            "dataset": dataset,
            "task": str(self._objectives.forget.task),
            "device": str(self._original.device),
            "seed": settings.seed,
            "settings": asdict(settings),
            "f1_original": self.f1_original,
            "f2_original": self.f2_original,
            "f1_star": next(point.f1 for point in self.points if point.role == MOST_FORGOTTEN),
            "f2_tolerance": SCHEDULE.f2_tolerance,
            "anchors": SCHEDULE.anchors,
            "steps_per_anchor": steps_per_anchor(self._objectives),
            "samples_from": "training images",
            "pictures": self._choice,
            "seconds": time.monotonic() - self._start,
            "peak_memory_mb": peak_mb(),
        }
