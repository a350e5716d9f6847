"""Evaluates and saves the models of a run or a sweep, and records them as points."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._utils.atomic_io import save_folder
from .._utils.process_memory import peak_mb
from .._version import __version__
from ..data.sets import FORGET, LEFT_OUT, RETAIN, USES, VALIDATION, NamedImage
from ..models import I2IModel
from ..models.adapters import UNMODIFIED, unadapted
from ..models.sharding import undivided, whole
from .batches import pixels
from .dial import Unlearned
from .encoder import Encoder
from .epsilons import Epsilon
from .history import History
from .identity import weights_digest
from .journal import Journal
from .objectives import Objectives
from .outcome import warn_if_skipped
from .pareto import EPSILON, MOST_FORGOTTEN, ParetoFront, ParetoPoint
from .pictures import BLURRED, Pictures
from .progress import Callback, OnStep, reporter
from .requests import Absent, Judged, Request, judge
from .run_folder import SAMPLES, UNSEEN, steps_of, write_run
from .schedule import SCHEDULE, steps_per_anchor
from .tables import ImageF1, RequestRow

__all__ = ["About", "Recorder"]

_TRAINING, _HELD_OUT = 6, 3  # pictures of each side


@dataclass(frozen=True)
class About:
    """What a run folder says about a run besides its results.

    Attributes:
        command: ``"run"`` or ``"sweep"``.
        listed: every image that was named for the run.
        dataset: description of the images.
        argv: the command line, as typed; empty for a call from Python.
        given: ε of each of the run's own requests, as given; empty for a sweep.
        after: folder of the earlier run that this one continues.
        after_point: name of its model that this run starts from.
        absent: requests of earlier runs whose images are not at hand.
    """

    command: str
    listed: Sequence[NamedImage]
    dataset: str = ""
    argv: Sequence[str] = ()
    given: Mapping[str, Epsilon] = field(default_factory=dict)
    after: Path | None = None
    after_point: str = ""
    absent: Sequence[Absent] = ()

    @property
    def counts(self) -> dict[tuple[str, str], dict[str, int]]:
        """Numbers of images by use, for each set and request."""
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for image in self.listed:
            uses = counts.setdefault((image.set, image.request), dict.fromkeys(USES, 0))
            uses[image.used_as] += 1
        return counts


class Recorder:
    """A recorder of the points of a run or a sweep.

    Args:
        model: the unmodified model.
        requests: the requests whose images are at hand. The values of a point are those of the first.
        about: what the folder says besides the results.
        out: folder to write to; None to write nothing.
        progress: called at most ten times per second.
        journal: provides the results of an earlier process.
        pictures: which pictures to keep, one of :data:`unlearn_ext.unlearning.pictures.CHOICES`.

    Attributes:
        stages: number of points that there will be, for progress reports.
        points: points recorded so far.
        histories: training history of each point and request, by their names.
        pictures: by name of their file, pictures of training images, and of held-out images if there are any.
        requests: rows of ``requests.csv``.
        per_image: rows of ``per_image.csv``.
        f1_original: f1 of the unmodified model for the first request.
        f2_original: f2 of the unmodified model; 0 unless targets are computed for each minibatch.
        originals: f1 of the unmodified model for each request.
    """

    def __init__(
        self,
        model: I2IModel,
        requests: Sequence[Request],
        about: About,
        out: str | PathLike[str] | None,
        progress: Callback | None,
        journal: Journal,
        pictures: str = BLURRED,
    ) -> None:
        self._start, self._journal = time.monotonic(), journal
        self._original, self._requests, self._about, self._progress = unadapted(model), requests, about, progress
        self._counts = about.counts
        self._first, *others = requests
        self._objectives = objectives = self._first.objectives
        self._out = None if out is None else Path(out)
        self._started = journal.recall(_now)
        if self._out is not None and objectives.settings.lora and not (self._out / UNMODIFIED).exists():
            save_folder(self._out / UNMODIFIED, self._original.save_pretrained, replace=False)  # adapters need it
        self.f1_original, self.f2_original = journal.recall(lambda: objectives.evaluate(objectives.frozen))
        self.originals = {self._first.name: self.f1_original}
        frozen, further = objectives.frozen, [request.objectives for request in others]
        values = journal.recall(lambda: [each.evaluate_f1(frozen) for each in further])
        self.originals |= {request.name: f1 for request, f1 in zip(others, values, strict=True)}
        self._unmodified = journal.recall(lambda: [each.per_image(frozen) for each in (objectives, *further)])
        self.histories: dict[tuple[str, str], History] = {}
        self.points: list[ParetoPoint] = []
        self.requests: list[RequestRow] = []
        self.per_image: list[ImageF1] = []
        self.stages = 0
        self._choice, task = pictures, objectives.forget.task
        self.pictures = {name: Pictures(*sides, task, pictures) for name, sides in _shown(requests).items()}
        for kept in self.pictures.values():
            kept.add("unmodified", kept.made_by(model))

    def reporting(self, name: str) -> tuple[History, OnStep | None]:
        """Return the history of a point for the first request, and its progress callback."""
        mixed = max(self.stages - max(len(self.points) + 1, len(SCHEDULE.anchors)), 0)
        told = reporter(self._progress, name, len(self.points), self.stages, mixed)
        return self.history(name, self._first.name), told

    def history(self, name: str, request: str) -> History:
        """Return the history of a point for a request."""
        return self.histories.setdefault((name, request), History())

    def record(
        self,
        name: str,
        role: str,
        epsilon: float,
        made: Unlearned,
        start: float,
        others: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Evaluate and save a model, and record it as a point.

        Args:
            name: name of the point and of its folder.
            role: role of the point, see :class:`unlearn_ext.unlearning.pareto.ParetoPoint`.
            epsilon: the requested ε, of the first request.
            made: the model.
            start: time at which work on it began, from ``time.monotonic``.
            others: ε and f1 of each further request, by its name.
        """
        reached = {self._first.name: (epsilon, made.f1), **(others or {})}
        judged, f2_validation, pictures, seconds = self._journal.recall(
            lambda: self._judged_and_saved(name, made.model, start, reached)
        )
        for request, values, unmodified in zip(self._requests, judged, self._unmodified, strict=True):
            asked = reached[request.name][0]
            self.requests.append(self._counted(Judged(*values).row(request, name, asked, self.originals[request.name])))
            if role == EPSILON:
                self.per_image += Judged(*values).rows(request, name, unmodified)
        self.requests += [self._counted(absent.row(name)) for absent in self._about.absent]
        for kept, made_by_it in zip(self.pictures.values(), pictures, strict=True):
            kept.add(name, made_by_it)
        steps = len(self.histories.get((name, self._first.name), ()))
        (_, f1_validation, _), *_ = judged
        self.points.append(
            ParetoPoint(
                name, role, epsilon, made.f1, made.f2, f1_validation, f2_validation, steps, seconds, made.made_of
            )
        )

    def finish(self, front: ParetoFront) -> None:
        """Write the tables and pictures of a finished run, if there is a folder to write to."""
        digest = weights_digest(self._original)
        if self._out is not None:
            pictures = {name: kept.samples for name, kept in self.pictures.items()}
            write_run(
                self._out, front, steps_of(self.histories), pictures, self._metrics(digest),
                listed=self._about.listed, requests=self.requests, per_image=self.per_image,
            )  # fmt: skip
        warn_if_skipped(history for (_, request), history in self.histories.items() if request == self._first.name)
        self._journal.finish()

    def _judged_and_saved(
        self, name: str, model: I2IModel, start: float, reached: Mapping[str, tuple[float, float]]
    ) -> tuple[list[tuple[float, float, torch.Tensor]], float, list[torch.Tensor], float]:
        """Save a model and evaluate it.

        Returns:
            The values of :class:`Judged` for each request, f2 of held-out images, the model's pictures, and the seconds
            since the start.
        """
        encode, validation = Encoder(model, self._objectives.settings), self._first.validation
        each = [judge(request, encode, reached[request.name][1]) for request in self._requests]
        unseen = validation is not None and validation.retain is not self._objectives.retain
        f2_validation = validation.evaluate_f2(encode) if validation and unseen else math.nan
        pictures = [kept.made_by(model) for kept in self.pictures.values()]
        saved = whole(model)
        if self._out is not None:
            save_folder(self._out / name, saved.save_pretrained, replace=True)
        judged = [(one.f1, one.f1_validation, one.images) for one in each]
        return judged, f2_validation, pictures, time.monotonic() - start

    def _metrics(self, digest: str) -> dict[str, Any]:
        settings, about = self._objectives.settings, self._about
        is_sweep, prompts = about.command == "sweep", getattr(undivided(self._original), "prompts", None)
        return {
            "version": __version__,
            "command": about.command,
            "argv": list(about.argv),
            "started": self._started,
            "finished": _now(),
            "family": self._original.family,
            "dataset": about.dataset,
            "task": str(self._objectives.forget.task),
            "device": str(self._original.device),
            "seed": settings.seed,
            "settings": asdict(settings),
            "after": None if about.after is None else str(about.after),
            "after_point": about.after_point or None,
            "requests": self._asked(),
            "images": {
                FORGET: {request: uses for (side, request), uses in self._counts.items() if side == FORGET},
                RETAIN: self._counts[RETAIN, ""],
            },
            "units": {"variance": self._objectives.variance.item(), "model": digest},
            **({} if prompts is None else {"prompts": prompts.record()}),
            "f1_original": self.f1_original,
            "f2_original": self.f2_original,
            "f1_star": next((point.f1 for point in self.points if point.role == MOST_FORGOTTEN), None),
            "f2_tolerance": SCHEDULE.f2_tolerance if is_sweep else None,
            "anchors": SCHEDULE.anchors if is_sweep else None,
            "steps_per_anchor": steps_per_anchor(self._objectives),
            "samples_from": "training images",
            "pictures": self._choice,
            "seconds": time.monotonic() - self._start,
            "peak_memory_mb": peak_mb(),
        }

    def _counted(self, row: RequestRow) -> RequestRow:
        """Return the row of a request with the numbers of its images that are held out and left out."""
        counts = self._counts.get((FORGET, row.request), dict.fromkeys(USES, 0))
        return replace(row, held_out=counts[VALIDATION], left_out=counts[LEFT_OUT])

    def _asked(self) -> dict[str, dict[str, Any]]:
        """Return the ε of the run's own requests, in units of f1 and as given; None for those of a sweep."""
        asked = {row.request: row.epsilon for row in self.requests}
        return {
            request.name: {"epsilon": asked[request.name], "epsilon_given": str(self._about.given[request.name])}
            if request.name in self._about.given
            else {"epsilon": None, "epsilon_given": None}
            for request in self._requests
            if not request.since
        }


def _now() -> str:
    """Return the time, ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _shown(requests: Sequence[Request]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the images whose pictures are saved, to forget and to retain, by the name of their file."""
    trained = [request.objectives for request in requests]
    shown = {SAMPLES: (_some_of_each(trained, _TRAINING), trained[0].retain.images[:_TRAINING])}
    held_out = [request.validation for request in requests if request.validation is not None]
    if held_out:
        retained = held_out[0].retain
        count = 0 if retained is trained[0].retain else _HELD_OUT  # no images to retain were held out
        shown[UNSEEN] = (_some_of_each(held_out, _HELD_OUT), retained.images[:count])
    return shown


def _some_of_each(objectives: Sequence[Objectives], count: int) -> torch.Tensor:
    """Return images to forget, about as many of each request, float in [-1, 1]."""
    each = math.ceil(count / len(objectives))
    return torch.cat([pixels(one.forget.images[:each]) for one in objectives])[:count]
