"""Sweeps: Phase I finds both ends of the front, Phase II models between them (Feng et al., ICLR 2025, eq. 3 and 4)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._utils import distributed
from .._utils.file_lock import locked
from .._utils.process_memory import release
from ..data.augment import Augment
from ..data.sets import FORGET, TRAINING, NamedImage, unnamed
from ..errors import UserError
from ..models import I2IModel
from ..models.adapters import UNMODIFIED, copied, to_train
from ..tasks import Corruption
from .dial import Anchor, Dial, Unlearned, encoder_state, saved_state
from .epsilons import Epsilon, check_epsilon, in_f1
from .history import History
from .identity import identity
from .journal import Journal, journal
from .objectives import Objectives
from .outputs import EVIDENCE, PAGE, SIGNATURE, Outputs
from .pareto import ANCHOR, EPSILON, LEAST_FORGOTTEN, MOST_FORGOTTEN, TRAINED, ParetoFront, point_name
from .pictures import ALL, BLURRED, check_choice
from .progress import Callback
from .recorder import About, Recorder
from .requests import Request
from .run_folder import FRONT, SAMPLES, UNSEEN, RunFolder, read_run, read_steps, steps_of, write_run
from .schedule import SCHEDULE
from .settings import Settings
from .tables import IMAGES, PER_IMAGE, REQUESTS
from .trainer import Trainer
from .validation import check_images, check_model, check_task

__all__ = ["OUTPUTS", "add_points", "read_dial", "refuse_run", "sweep", "wanted"]

_FIGURES = [f"{name}.{kind}" for name in ("front", "steering", "convergence", "strip") for kind in ("png", "svg")]
OUTPUTS = Outputs(
    "sweep",
    FRONT,
    ".front.csv.journal",
    # Earlier versions used the names `boundary-*`; their runs may be replaced too.
    models=rf"{UNMODIFIED}|{MOST_FORGOTTEN}|{LEAST_FORGOTTEN}|boundary-high|boundary-low|(anchor|eps)--?\d+\.\d{{4}}",
    # The sweep writes the first two lines; other commands write the rest.
    files=(
        FRONT, "history.csv", SAMPLES, UNSEEN, "metrics.json",
        IMAGES, REQUESTS, PER_IMAGE,
        "sources.json", "hole.csv", "metrics.csv", "report.html", *(f"figures/{name}" for name in _FIGURES),
        "audit.csv", EVIDENCE, SIGNATURE, PAGE,
    ),
)  # fmt: skip
_HELD_OUT = ("forget_validation", "retain_validation")


def sweep(
    model: I2IModel,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    task: Corruption,
    points: int = 9,
    epsilons: Sequence[Epsilon] | None = None,
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    augment: Augment | None = None,
    out: str | PathLike[str] | None = None,
    dataset: str = "",
    listed: Sequence[NamedImage] = (),
    argv: Sequence[str] = (),
    settings: Settings | None = None,
    progress: Callback | None = None,
    pictures: str = BLURRED,
    resume: bool = False,
    force: bool = False,
) -> ParetoFront:
    """Return the most and the least forgotten model, and models with min f2 s.t. f1 ≤ ε for ε between them.

    A few anchors are trained one after the other, starting from the unmodified model and keeping the optimizer's state.
    The last anchor is the most forgotten model, where f1 converges to f1* (Phase I). All other models are mixtures on
    lines between anchors, see :class:`unlearn_ext.unlearning.dial.Dial`: the least forgotten model, where f2 reaches
    ``SCHEDULE.f2_tolerance`` (Phase I), and one for each requested ε (Phase II). A model is trained for an ε only if an
    anchor dominates the mixture.

    If ``torch.distributed`` is initialised, call it in every process with the same arguments. Each process computes its
    share of every minibatch, all find the same models, and the first one writes.

    Args:
        model: the model, which is not changed; f1 and f2 refer to its encoder.
        forget: images to forget, uint8 [N, C, H, W], or float32 in [-1, 1]; not corrupted.
        retain: images to retain, uint8 [M, C, H, W], or float32 in [-1, 1]; not corrupted.
        task: the task T, one of :mod:`unlearn_ext.tasks`.
        points: number of ε, spaced evenly and strictly between the least and the most forgotten model.
        epsilons: values of ε to use instead, rounded to four decimals, or shares of the unmodified model's f1, such as
            ``"12%"``; warns for each that cannot be reached.
        held_out: forget and retain images for validation, which are not trained on; without them the validation
            columns are NaN.
        augment: augmentation of training images: one of :mod:`unlearn_ext.data.augment`, or any function of images and
            the number of the draw. The frozen encoder then runs at every step.
        out: folder for the models, the tables, ``metrics.json``, ``samples.npz`` and ``validation.npz``.
        dataset: description of the images, for ``metrics.json``.
        listed: names, hashes and uses of all images, for ``images.csv``; by default images are named by position.
        argv: the command line, for ``metrics.json``.
        settings: training settings.
        progress: called at most ten times per second.
        pictures: which pictures to save: ``"none"``, ``"retain"`` (images to retain), ``"blurred"`` (also images to
            forget, blurred), or ``"all"``.
        resume: continue the sweep that an earlier process left in ``out``, with the same results as without the
            interruption; a finished sweep is returned, with a warning.
        force: replace an earlier sweep in ``out``, finished or not; only files that it wrote are removed.

    Returns:
        The front, from the most to the least forgotten model, anchors included. Its method ``at`` returns a model at
        any other ε.

    Raises:
        UserError: f1 cannot be lowered; or ``out`` cannot be written to; or an argument is invalid; or, before training
            begins, :func:`unlearn_ext.unlearning.journal.check` rejects ``out``, because it contains another run or
            files that no run wrote.
    """
    settings = settings or Settings()
    if points < 0:
        raise UserError(f"points is {points}; it must be 0 or more.")
    for epsilon in epsilons or ():
        check_epsilon(epsilon)
    check_model(model)
    check_task(task)
    sets = {"forget": forget, "retain": retain, **dict(zip(_HELD_OUT, held_out or (), strict=False))}
    for name, images in sets.items():
        check_images(name.replace("_", " "), images, model)
    run = {} if out is None else identity(model, sets, task, augment, settings, **wanted(points, epsilons, pictures))
    model = to_train(model, settings.lora, settings.seed)
    freeze = partial(Objectives.freeze, model, forget, retain, task, augment=augment, settings=settings)
    with journal(out, OUTPUTS, run, resume=resume, force=force) as kept:
        if kept.finished:
            warnings.warn(f"the run in {out} is finished: nothing is left to do.", stacklevel=2)
            assert out is not None  # only a run with a folder can be finished
            done = Path(out)
            front = ParetoFront.from_csv(done / FRONT)
            loaded = cache(lambda: read_dial(done, front, model, freeze()))  # loads the models on first use
            return replace(front, dial=lambda epsilon: loaded().at(epsilon))
        objectives = freeze()
        about = About("sweep", listed or unnamed({FORGET: forget}, retain, _named(held_out)), dataset, argv)
        request = _request(objectives, held_out, about.listed)
        folder = Path(out) if out is not None and distributed.is_first() else None
        recorder = Recorder(model, [request], about, folder, progress, kept, pictures)
        recorder.stages = len(SCHEDULE.anchors) + 1 + (points if epsilons is None else len(epsilons))
        dial = _train_anchors(model, objectives, recorder, kept)
        least = _record_least_forgotten(dial, recorder)
        if epsilons is None:
            most = dial.f1_star
            between = [most + (least - most) * (i + 1) / (points + 1) for i in range(points)]
            if (distinct := len(_distinct(between))) < points:
                warnings.warn(
                    f"{points} points were asked for, but the range of f1, {most:.4g} to {least:.4g}, has only "
                    f"{distinct} ε that differ in four decimals: the front has fewer points.",
                    stacklevel=2,
                )
        else:
            between = [in_f1(epsilon, recorder.f1_original) for epsilon in epsilons]
        for epsilon in _distinct(between):
            _record_epsilon(epsilon, dial, recorder, kept)
        front = ParetoFront(tuple(recorder.points), dial.at)
        recorder.finish(front)
        return front


def _request(
    objectives: Objectives, held_out: tuple[torch.Tensor, torch.Tensor] | None, listed: Sequence[NamedImage]
) -> Request:
    """Return the only request of a sweep."""
    used = [image for image in listed if (image.set, image.used_as) == (FORGET, TRAINING)]
    validation = objectives.held_out(*held_out) if held_out else None
    return Request(used[0].request, objectives, validation, [image.file for image in used])


def _named(
    held_out: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor] | None:
    return ({FORGET: held_out[0]}, held_out[1]) if held_out else None


def _train_anchors(model: I2IModel, objectives: Objectives, recorder: Recorder, kept: Journal) -> Dial:
    """Train and record the anchors, from the unmodified to the most forgotten model (Phase I).

    Raises:
        UserError: f1 did not fall.
    """
    anchors, unlearned = [], copied(model)
    release()
    trainer = Trainer(unlearned, objectives, History(), journal=kept)
    for share in SCHEDULE.anchors:
        start, epsilon = time.monotonic(), share * recorder.f1_original
        is_last = share == SCHEDULE.anchors[-1]
        name, role = (MOST_FORGOTTEN, MOST_FORGOTTEN) if is_last else (f"anchor-{epsilon:.4f}", ANCHOR)
        trainer.report_to(*recorder.reporting(name))
        f1, f2 = trainer.approach(epsilon)
        if not f1 < recorder.f1_original:
            raise UserError(
                f"f1 did not fall below {recorder.f1_original:.4g} in {trainer.steps_taken} steps, so there is no "
                "front; use more steps (--steps) or a higher learning rate (--lr)."
            )
        state = kept.recall(lambda: encoder_state(unlearned))
        anchors.append(Anchor(name, state, f1, f2))
        recorder.record(name, role, f1 if is_last else epsilon, Unlearned(unlearned, f1, f2, TRAINED), start)
    return Dial(model, objectives, recorder.f1_original, anchors)


def _record_least_forgotten(dial: Dial, recorder: Recorder) -> float:
    """Record the mixture with the lowest f1 that does no damage (Phase I); return its f1."""
    start = time.monotonic()
    made = dial.model(dial.costing(SCHEDULE.f2_tolerance))
    recorder.record(LEAST_FORGOTTEN, LEAST_FORGOTTEN, made.f1, made, start)
    return made.f1


def _record_epsilon(epsilon: float, dial: Dial, recorder: Recorder, kept: Journal) -> None:
    """Record the model with min f2 s.t. f1 ≤ ε (Phase II)."""
    start, name = time.monotonic(), point_name(epsilon)
    recorder.record(name, EPSILON, epsilon, dial.at(epsilon, *recorder.reporting(name), kept), start)


def add_points(
    out: str | PathLike[str],
    model: I2IModel,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    task: Corruption,
    epsilons: Sequence[Epsilon],
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    augment: Augment | None = None,
    settings: Settings | None = None,
    progress: Callback | None = None,
) -> ParetoFront:
    """Add models at other ε to the folder of a finished sweep.

    Args:
        out: the folder; models, rows and pictures are added to it.
        model: as for :func:`sweep`.
        forget: as for :func:`sweep`.
        retain: as for :func:`sweep`.
        task: as for :func:`sweep`.
        epsilons: values of ε, rounded to four decimals, or shares of the unmodified model's f1, such as ``"12%"``;
            models at an ε that already exist are replaced.
        held_out: as for :func:`sweep`.
        augment: as for :func:`sweep`.
        settings: as for :func:`sweep`.
        progress: called at most ten times per second.

    Returns:
        The whole front.

    Raises:
        UserError: the folder is not that of a finished sweep, or a file cannot be read or written.
    """
    check_model(model)
    check_task(task)
    for epsilon in epsilons:
        check_epsilon(epsilon)
    out = Path(out)
    with locked(out):
        before = read_run(out)
        refuse_run(before)
        settings = settings or Settings()
        model = to_train(model, settings.lora, settings.seed)
        objectives = Objectives.freeze(model, forget, retain, task, augment=augment, settings=settings)
        about = About("sweep", before.images or unnamed({FORGET: forget}, retain, _named(held_out)))
        request = _request(objectives, held_out, about.listed)
        recorder = Recorder(model, [request], about, out, progress, Journal(), before.pictures)
        dial, recorder.stages = read_dial(out, before.front, model, objectives), len(epsilons)
        for epsilon in _distinct([in_f1(epsilon, recorder.f1_original) for epsilon in epsilons]):
            _record_epsilon(epsilon, dial, recorder, Journal())
        new = {point.name for point in recorder.points}
        points = (*recorder.points, *(point for point in before.front if point.name not in new))
        front = ParetoFront(points, dial.at)
        steps = [row for row in read_steps(out) if row[0] not in new]
        saved = {SAMPLES: before.samples, UNSEEN: before.validation}
        pictures = {name: {**saved[name], **added.samples} for name, added in recorder.pictures.items()}
        requests = [*recorder.requests, *(row for row in before.requests if row.point not in new)]
        per_image = [*(row for row in before.per_image if row.point not in new), *recorder.per_image]
        order = [point.name for point in front]
        write_run(
            out, front, [*steps, *steps_of(recorder.histories)], pictures, before.metrics, listed=about.listed,
            requests=sorted(requests, key=lambda row: order.index(row.point)), per_image=per_image,
        )  # fmt: skip
        return front


def refuse_run(run: RunFolder) -> None:
    """Raise ``UserError`` if a folder is that of a run to one ε, which has no dial."""
    if not run.is_sweep:
        raise UserError(
            f"{run.path} is a run to one ε, without the models that the dial needs: give the folder of a sweep, or "
            "train another model with `unlearn-ext run`."
        )


def read_dial(out: Path, front: ParetoFront, model: I2IModel, objectives: Objectives) -> Dial:
    """Return the dial of a finished sweep.

    Args:
        out: folder of the sweep.
        front: points of the sweep.
        model: the unmodified model.
        objectives: objectives that were frozen from it.

    Raises:
        UserError: an anchor cannot be loaded.
    """
    points = [point for point in reversed(front.points) if point.role in (ANCHOR, MOST_FORGOTTEN)]
    states = (saved_state(model, out / point.name) for point in points)
    anchors = [Anchor(point.name, state, *point.values) for point, state in zip(points, states, strict=True)]
    return Dial(model, objectives, objectives.evaluate_f1(objectives.frozen), anchors)


def wanted(points: int, epsilons: Sequence[Epsilon] | None, pictures: str) -> dict[str, Any]:
    """Return what was asked for as part of a sweep's identity; the arguments are those of :func:`sweep`."""
    check_choice(pictures)
    if epsilons is None:
        asked: dict[str, Any] = {"points": points}
    else:
        shares = sorted({epsilon for epsilon in epsilons if isinstance(epsilon, str)})
        asked = {"epsilons": [*_distinct([epsilon for epsilon in epsilons if not isinstance(epsilon, str)]), *shares]}
    # Earlier versions saved all pictures, and their journals do not say so.
    return asked if pictures == ALL else {**asked, "pictures": pictures}


def _distinct(epsilons: Sequence[float]) -> list[float]:
    """Return distinct ε in descending order, rounded as in point names, so that no two points share a folder."""
    return sorted({round(epsilon, 4) for epsilon in epsilons}, reverse=True)
