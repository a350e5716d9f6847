"""Phase I, the two boundaries of a front, and Phase II, ε between them (Feng et al., ICLR 2025, eq. 3 and 4)."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._utils import distributed
from .._utils.atomic_io import save_folder
from .._utils.file_lock import locked
from .._utils.process_memory import peak_mb, release
from ..data.augment import Augment
from ..errors import UserError
from ..models import I2IModel, load, reconstruct
from ..optim.control import StepStats
from .batches import Task, in_bytes, pixels
from .dial import Anchor, Dial, Unlearned, encoder_state
from .encoder import Encoder
from .history import History
from .identity import identity
from .journal import Journal, journal
from .objectives import Objectives
from .outputs import Outputs
from .pareto import TRAINED, ParetoFront, ParetoPoint, point_name
from .progress import Callback, Progress
from .run_folder import FRONT, read_run, read_steps, steps_of, write_run
from .settings import Settings
from .trainer import OnStep, Run, steps_per_anchor, warn_if_skipped
from .validation import check_epsilon, check_images, check_model, check_task

__all__ = [
    "ANCHOR",
    "ANCHORS",
    "EPSILON",
    "F2_TOLERANCE",
    "HELD_OUT",
    "HIGH",
    "LOW",
    "OUTPUTS",
    "SAMPLES",
    "add_points",
    "read_dial",
    "sweep",
    "wanted",
]

# ε of the anchors, as shares of the unmodified model's f1, from the least to the most forgotten. The last asks for all
# and comes to rest at f1*.
ANCHORS = (0.6, 0.25, 0.06, 0.0)
F2_TOLERANCE = 1e-3  # f2 that counts as no cost, in variances of the frozen latents
SAMPLES = 6  # images of each side in samples.npz
HIGH, LOW, ANCHOR, EPSILON = "boundary-high", "boundary-low", "anchor", "epsilon"  # roles of points
_FIGURES = [f"{name}.{kind}" for name in ("front", "steering", "convergence", "strip") for kind in ("png", "svg")]
OUTPUTS = Outputs(
    "sweep",
    FRONT,
    models=rf"{HIGH}|{LOW}|(anchor|eps)--?\d+\.\d{{4}}",
    # The command line, the evaluation and the report add the second line to what a sweep itself writes.
    files=(
        FRONT, "history.csv", "samples.npz", "metrics.json",
        "sources.json", "metrics.csv", "report.html", *(f"figures/{name}" for name in _FIGURES),
    ),
)  # fmt: skip
HELD_OUT = ("forget_validation", "retain_validation")


def sweep(
    model: I2IModel,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    task: Task,
    points: int = 9,
    epsilons: Sequence[float] | None = None,
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    augment: Augment | None = None,
    out: str | PathLike[str] | None = None,
    dataset: str = "",
    settings: Settings | None = None,
    progress: Callback | None = None,
    resume: bool = False,
    force: bool = False,
) -> ParetoFront:
    """Return both boundaries, and models with min f2 s.t. f1 ≤ ε for ε between them.

    A few anchors are trained, one after the other from the unmodified model on, with the optimizer's state kept. The
    last one is the highest boundary, where f1 comes to rest at f1* (Phase I). All other models are mixtures on straight
    lines between anchors, see :class:`unlearn_ext.unlearning.dial.Dial`: the lowest boundary, where f2 first costs more
    than ``F2_TOLERANCE``, and those at the ε that are asked for (Phase II). A model is trained for an ε only where the
    mixture is worse than an anchor in both f1 and f2.

    Where ``torch.distributed`` is initialised, call it in every process with the same arguments: each works on its
    share of every minibatch, all find the same models, and the first writes.

    Args:
        model: left as it is; its encoder is the frozen one that f1 and f2 refer to.
        forget: uint8 [N, C, H, W], or float32 in [-1, 1]; not corrupted.
        retain: uint8 [M, C, H, W], or float32 in [-1, 1]; not corrupted.
        task: T, one of :mod:`unlearn_ext.tasks`.
        points: how many ε, spaced evenly strictly between the boundaries.
        epsilons: these instead, to four decimals; warns for any that is out of reach.
        held_out: forget and retain images that are not trained on, to validate with; without them the validation
            columns are NaN.
        augment: of training images, one of :mod:`unlearn_ext.data.augment` or any function of images and the number of
            a draw. The frozen encoder then works at every step.
        out: folder for the models, ``front.csv``, ``history.csv``, ``metrics.json`` and ``samples.npz``.
        dataset: what the images are, for ``metrics.json``.
        settings: of the training.
        progress: called at most ten times a second.
        resume: go on with this sweep where an earlier process left it in ``out``, and end as that would have ended; one
            that is finished there is returned, with a warning.
        force: replace an earlier sweep in ``out``, finished or not. What it wrote is removed, and no other file.

    Returns:
        The front, from the highest completeness to the lowest; the anchors are among its points. Its method ``at``
        gives a model at any other ε.

    Raises:
        UserError: f1 cannot be lowered at all; or ``out`` cannot be written to; or, before anything is trained,
            :func:`unlearn_ext.unlearning.journal.check` refuses ``out``: it holds another run, or files that no run
            wrote.
    """
    settings = settings or Settings()
    if points < 0:
        raise UserError(f"points is {points}; as many models cannot be put between the boundaries.")
    for epsilon in epsilons or ():
        check_epsilon(epsilon)
    check_model(model)
    check_task(task)
    sets = {"forget": forget, "retain": retain, **dict(zip(HELD_OUT, held_out or (), strict=False))}
    for name, images in sets.items():
        check_images(name.replace("_", " "), images, model)
    run = {} if out is None else identity(model, sets, task, augment, settings, **wanted(points, epsilons))
    freeze = partial(Objectives.freeze, model, forget, retain, task, augment=augment, settings=settings)
    with journal(out, OUTPUTS, run, resume=resume, force=force) as kept:
        if kept.finished:
            warnings.warn(f"the run in {out} is finished: nothing is left to do.", stacklevel=2)
            front = ParetoFront.from_csv(Path(out) / FRONT)
            dial = cache(lambda: read_dial(Path(out), front, model, freeze()))  # nothing is loaded before it is needed
            return replace(front, dial=lambda epsilon: dial().at(epsilon))
        objectives = freeze()
        made = _Sweep(model, objectives, held_out, out if distributed.is_first() else None, progress, kept)
        made.stages = len(ANCHORS) + 1 + (points if epsilons is None else len(epsilons))
        made.train_anchors()
        low = made.find_lowest_boundary()
        if epsilons is None:
            high = made.dial.f1_star
            epsilons = [high + (low.epsilon - high) * (i + 1) / (points + 1) for i in range(points)]
        for epsilon in _distinct(epsilons):
            made.add(epsilon)
        return made.finish(dataset)


class _Sweep:
    """The models of a sweep, and what is noted and saved of each."""

    dial: Dial

    def __init__(
        self,
        model: I2IModel,
        objectives: Objectives,
        held_out: tuple[torch.Tensor, torch.Tensor] | None,
        out: str | PathLike[str] | None,
        progress: Callback | None,
        kept: Journal,
    ) -> None:
        self.start, self.journal = time.monotonic(), kept
        self.original, self.objectives, self.settings = model, objectives, objectives.settings
        self.task, self.progress = objectives.forget.task, progress
        self.validation = objectives.held_out(*held_out) if held_out else None
        self.f1_original, self.f2_original = kept.recall(lambda: objectives.evaluate(objectives.frozen))
        self.histories: dict[str, History] = {}
        self.points: list[ParetoPoint] = []
        self.stages = 0
        self.out = None if out is None else Path(out)
        shown = [pixels(side.images[:SAMPLES]) for side in (objectives.forget, objectives.retain)]
        self.show = torch.cat(shown)
        unmodified = reconstruct(model, self.show, self.task)
        samples = {"original": self.show, "corrupted": self.task(self.show), "unmodified": unmodified}
        self.samples = {"is_forget": np.repeat([True, False], [len(side) for side in shown])}
        self.samples |= {name: in_bytes(images).numpy() for name, images in samples.items()}

    def train_anchors(self) -> None:
        """Phase I: from the unmodified model to the highest completeness, anchor by anchor.

        Raises:
            UserError: f1 did not fall.
        """
        anchors, model = [], copy.deepcopy(self.original)
        release()
        run = Run(model, self.objectives, History(), journal=self.journal)
        for share in ANCHORS:
            start, epsilon = time.monotonic(), share * self.f1_original
            name, role = (f"anchor-{epsilon:.4f}", ANCHOR) if share != ANCHORS[-1] else (HIGH, HIGH)
            run.report_to(*self._reporting(name))
            values = run.approach(epsilon)
            if not values[0] < self.f1_original:
                raise UserError(
                    f"f1 did not fall below {self.f1_original:.4g} in {run.steps_taken} steps, so there is no front; "
                    "take more steps or a higher learning rate."
                )
            state = self.journal.recall(lambda: encoder_state(model))
            anchors.append(Anchor(name, state, *values))
            reached = Unlearned(model, *values, TRAINED)
            self._note(name, role, epsilon if role == ANCHOR else reached.f1, reached, start)
        self.dial = Dial(self.original, self.objectives, self.f1_original, anchors)

    def find_lowest_boundary(self) -> ParetoPoint:
        """Phase I: the mixture with the least ε of those that cost no more than ``F2_TOLERANCE``."""
        start = time.monotonic()
        made = self.dial.model(self.dial.costing(F2_TOLERANCE))
        return self._note(LOW, LOW, made.f1, made, start)

    def add(self, epsilon: float) -> ParetoPoint:
        """Phase II: min f2 s.t. f1 ≤ ε."""
        start, name = time.monotonic(), point_name(epsilon)
        return self._note(name, EPSILON, epsilon, self.dial.at(epsilon, *self._reporting(name), self.journal), start)

    def finish(self, dataset: str) -> ParetoFront:
        """Return the front; with a folder to write to, also write its files."""
        front = ParetoFront(tuple(self.points), self.dial.at)
        if self.out is not None:
            write_run(self.out, front, steps_of(self.histories), self.samples, self._metrics(dataset))
        warn_if_skipped(self.histories.values())
        self.journal.finish()
        return front

    def _reporting(self, name: str) -> tuple[History, OnStep | None]:
        """Return the history and the progress callback of a point."""
        stage = len(self.points)

        def on_step(step: int, steps: int, stats: StepStats, f2: float) -> None:
            self.progress(
                Progress(name, stage, self.stages, step, steps, stats.constraint.item(), f2, stats.lam.item())
            )

        return self.histories.setdefault(name, History()), on_step if self.progress else None

    def _note(self, name: str, role: str, epsilon: float, made: Unlearned, start: float) -> ParetoPoint:
        judged = self.journal.recall(lambda: self._judged_and_saved(name, made.model, start))
        validation, pictures, seconds = judged
        self.samples[name] = pictures.numpy()
        steps = len(self.histories.get(name, ()))
        point = ParetoPoint(name, role, epsilon, made.f1, made.f2, *validation, steps, seconds, made.made_of)
        self.points.append(point)
        return point

    def _judged_and_saved(
        self, name: str, model: I2IModel, start: float
    ) -> tuple[tuple[float, float], torch.Tensor, float]:
        """Return (f1, f2) of held-out images, the sample pictures, and the seconds since the start."""
        encode = Encoder(model, self.settings)
        validation = self.validation.evaluate(encode) if self.validation else (math.nan, math.nan)
        pictures = in_bytes(reconstruct(model, self.show, self.task))
        if self.out is not None:
            save_folder(self.out / name, model.save_pretrained, replace=True)
        return validation, pictures, time.monotonic() - start

    def _metrics(self, dataset: str) -> dict[str, Any]:
        from .._version import __version__

        return {
            "version": __version__,
            "family": self.original.family,
            "dataset": dataset,
            "task": str(self.task),
            "device": str(self.original.device),
            "seed": self.settings.seed,
            "settings": asdict(self.settings),
            "f1_original": self.f1_original,
            "f2_original": self.f2_original,
            "f1_star": self.dial.f1_star,
            "f2_tolerance": F2_TOLERANCE,
            "anchors": ANCHORS,
            "steps_per_anchor": steps_per_anchor(self.objectives),
            "samples_from": "training images",
            "seconds": time.monotonic() - self.start,
            "peak_memory_mb": peak_mb(),
        }


def add_points(
    out: str | PathLike[str],
    model: I2IModel,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    task: Task,
    epsilons: Sequence[float],
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    augment: Augment | None = None,
    settings: Settings | None = None,
    progress: Callback | None = None,
) -> ParetoFront:
    """Add models at other ε to the folder of a finished sweep.

    Args:
        out: the folder; models, rows and pictures are added to it.
        epsilons: to four decimals; one that is there already is made anew.

    The other arguments are those that :func:`sweep` was given.

    Returns:
        The whole front.

    Raises:
        UserError: no finished sweep is there, or a file cannot be read or written.
    """
    check_model(model)
    check_task(task)
    for epsilon in epsilons:
        check_epsilon(epsilon)
    out = Path(out)
    with locked(out):
        before = read_run(out)
        objectives = Objectives.freeze(model, forget, retain, task, augment=augment, settings=settings)
        made = _Sweep(model, objectives, held_out, out, progress, Journal())
        made.dial, made.stages = read_dial(out, before.front, model, objectives), len(epsilons)
        for epsilon in _distinct(epsilons):
            made.add(epsilon)
        new = {point.name for point in made.points}
        front = ParetoFront((*made.points, *(point for point in before.front if point.name not in new)), made.dial.at)
        steps = [row for row in read_steps(out) if row[0] not in new]
        samples = {**before.samples, **made.samples}
        write_run(out, front, [*steps, *steps_of(made.histories)], samples, before.metrics)
        return front


def read_dial(out: Path, front: ParetoFront, model: I2IModel, objectives: Objectives) -> Dial:
    """Return the dial of a finished sweep.

    Args:
        out: its folder.
        front: its points.
        model: the unmodified one.
        objectives: frozen from that.

    Raises:
        UserError: an anchor cannot be loaded.
    """
    points = [point for point in reversed(front.points) if point.role in (ANCHOR, HIGH)]
    loaded = (load(model.family, out / point.name) for point in points)
    anchors = [
        Anchor(point.name, encoder_state(anchor), *point.values) for point, anchor in zip(points, loaded, strict=True)
    ]
    return Dial(model, objectives, objectives.evaluate_f1(objectives.frozen), anchors)


def wanted(points: int, epsilons: Sequence[float] | None) -> dict[str, Any]:
    """Return which points a sweep is asked for, as part of its identity; the arguments are those of :func:`sweep`."""
    return {"points": points} if epsilons is None else {"epsilons": _distinct(epsilons)}


def _distinct(epsilons: Sequence[float]) -> list[float]:
    """Falling, to the four decimals that a point's name has: no two points may share a folder."""
    return sorted({round(epsilon, 4) for epsilon in epsilons}, reverse=True)
