"""Evaluates and saves the models of a sweep, and records them as points."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._utils.atomic_io import save_folder
from .._utils.process_memory import peak_mb
from .._version import __version__
from ..models import I2IModel, reconstruct
from .batches import in_bytes, pixels
from .dial import Unlearned
from .encoder import Encoder
from .history import History
from .journal import Journal
from .objectives import Objectives
from .outcome import warn_if_skipped
from .pareto import MOST_FORGOTTEN, ParetoFront, ParetoPoint
from .progress import Callback, OnStep, reporter
from .run_folder import steps_of, write_run
from .schedule import SCHEDULE, steps_per_anchor

__all__ = ["Recorder"]

SAMPLES = 6  # images of each side in samples.npz


class Recorder:
    """A recorder of the points of a sweep.

    Args:
        model: the unmodified model.
        objectives: objectives that were frozen from it.
        held_out: forget and retain images for validation; without them the validation columns are NaN.
        out: folder to write to; None to write nothing.
        progress: called at most ten times per second.
        journal: provides the results of an earlier process.

    Attributes:
        stages: number of points that the sweep will have, for progress reports.
        points: points recorded so far.
        histories: training history of each point, by name.
        samples: pictures by name, for ``samples.npz``.
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
    ) -> None:
        self._start, self._journal = time.monotonic(), journal
        self._original, self._objectives, self._progress = model, objectives, progress
        self._validation = objectives.held_out(*held_out) if held_out else None
        self._out = None if out is None else Path(out)
        self.f1_original, self.f2_original = journal.recall(lambda: objectives.evaluate(objectives.frozen))
        self.histories: dict[str, History] = {}
        self.points: list[ParetoPoint] = []
        self.stages = 0
        sides = [pixels(side.images[:SAMPLES]) for side in (objectives.forget, objectives.retain)]
        self._shown, self._task = torch.cat(sides), objectives.forget.task
        pictures = {
            "original": self._shown,
            "corrupted": self._task(self._shown),
            "unmodified": reconstruct(model, self._shown, self._task),
        }
        self.samples = {"is_forget": np.repeat([True, False], [len(side) for side in sides])}
        self.samples |= {name: in_bytes(images).numpy() for name, images in pictures.items()}

    def reporting(self, name: str) -> tuple[History, OnStep | None]:
        """Return the history and the progress callback of a point."""
        history = self.histories.setdefault(name, History())
        mixed = max(self.stages - max(len(self.points) + 1, len(SCHEDULE.anchors)), 0)
        return history, reporter(self._progress, name, len(self.points), self.stages, mixed)

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
        self.samples[name] = pictures.numpy()
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
            write_run(self._out, front, steps_of(self.histories), self.samples, self._metrics(dataset))
        warn_if_skipped(self.histories.values())
        self._journal.finish()

    def _judged_and_saved(
        self, name: str, model: I2IModel, start: float
    ) -> tuple[tuple[float, float], torch.Tensor, float]:
        """Save a model; return (f1, f2) for held-out images, the sample pictures, and the seconds since the start."""
        encode = Encoder(model, self._objectives.settings)
        validation = self._validation.evaluate(encode) if self._validation else (math.nan, math.nan)
        pictures = in_bytes(reconstruct(model, self._shown, self._task))
        if self._out is not None:
            save_folder(self._out / name, model.save_pretrained, replace=True)
        return validation, pictures, time.monotonic() - start

    def _metrics(self, dataset: str) -> dict[str, Any]:
        settings = self._objectives.settings
        return {
            "version": __version__,
            "family": self._original.family,
            "dataset": dataset,
            "task": str(self._task),
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
            "seconds": time.monotonic() - self._start,
            "peak_memory_mb": peak_mb(),
        }
