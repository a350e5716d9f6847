"""Unlearning of one or several requests, each to its ε."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._utils import distributed
from ..data.augment import Augment
from ..data.sets import FORGET, TRAINING, NamedImage, unnamed
from ..errors import UserError
from ..models import I2IModel
from ..models.adapters import UNMODIFIED, copied, to_train
from ..tasks import Corruption
from .dial import Unlearned, restored
from .earlier import Earlier
from .epsilons import Epsilon, check_epsilon, in_f1
from .history import History
from .identity import identity, weights_digest
from .journal import Journal, journal
from .objectives import Objectives
from .outcome import warn_if_missed, warn_if_outside, warn_if_skipped
from .pareto import EPSILON, TRAINED, ParetoFront, point_name
from .phases import OUTPUTS as OUTPUTS_OF_SWEEP
from .pictures import BLURRED, check_choice
from .progress import Callback, OnStep, reporter
from .recorder import About, Recorder
from .requests import Absent, Request
from .run_folder import FRONT
from .schedule import SCHEDULE, steps_per_anchor
from .settings import Settings
from .trainer import Trainer
from .validation import check_images, check_model, check_task
from .within import bring_within

__all__ = ["OUTPUTS", "unlearn", "wanted"]

Images = torch.Tensor | Mapping[str, torch.Tensor]
OUTPUTS = replace(OUTPUTS_OF_SWEEP, command="run", journal=".run.journal", models=rf"{UNMODIFIED}|eps--?\d+\.\d{{4}}")


def unlearn(
    model: I2IModel,
    forget: Images,
    retain: torch.Tensor,
    *,
    task: Corruption,
    epsilon: Epsilon | Mapping[str, Epsilon],
    after: Earlier | None = None,
    held_out: tuple[Images, torch.Tensor] | None = None,
    augment: Augment | None = None,
    out: str | PathLike[str] | None = None,
    dataset: str = "",
    listed: Sequence[NamedImage] = (),
    argv: Sequence[str] = (),
    settings: Settings | None = None,
    history: History | None = None,
    progress: Callback | None = None,
    pictures: str = BLURRED,
    resume: bool = False,
    force: bool = False,
) -> I2IModel:
    """Return a copy of the model trained to min f2 s.t. f1 ≤ ε (Feng et al., ICLR 2025, eq. 4).

    With several requests, f1 ≤ ε is a constraint for each of them, over its own images and with its own ε.

    If ``torch.distributed`` is initialised, call it in every process with the same arguments. Each process computes its
    share of every minibatch, all return the same model, and the first one writes.

    Args:
        model: the model, which is not changed; f1 and f2 refer to its encoder.
        forget: images to forget, uint8 [N, C, H, W], or float32 in [-1, 1], not corrupted; or a dict of them by the
            name of the request.
        retain: images to retain, uint8 [M, C, H, W], or float32 in [-1, 1]; not corrupted.
        task: the task T, one of :mod:`unlearn_ext.tasks`.
        epsilon: f1 to reach, in variances of the frozen latents. 0: the latents are those of noise; the unmodified
            model's f1: nothing is forgotten. Warns if it is outside this range. A string such as ``"12%"`` is a share
            of the unmodified model's f1. For several requests a dict by name.
        after: an earlier run on the same model, whose model training starts from, see
            :func:`unlearn_ext.unlearning.earlier.read_earlier`. ``model`` is still the unmodified one, and the units
            stay those of the earlier run. Its requests whose images are in ``forget`` under their names keep their ε;
            the others are recorded as not at hand.
        held_out: forget and retain images for validation, which are not trained on. Requests may be missing, and the
            retain images may be empty: then their validation columns are NaN.
        augment: augmentation of training images: one of :mod:`unlearn_ext.data.augment`, or any function of images and
            the number of the draw. The frozen encoder then runs at every step.
        out: folder for the model, the tables, ``metrics.json`` and pictures, as for a sweep.
        dataset: description of the images, for ``metrics.json``.
        listed: names, hashes and uses of all images, for ``images.csv``; by default images are named by position.
        argv: the command line, for ``metrics.json``.
        settings: training settings.
        history: receives every step, if given; of several requests, the first one's values.
        progress: called at most ten times per second.
        pictures: which pictures to save, as for a sweep.
        resume: continue the run that an earlier process left in ``out``, with the same results as without the
            interruption; the model of a finished run is returned, with a warning.
        force: replace an earlier run in ``out``, finished or not; only files that it wrote are removed.

    Returns:
        A copy of the model with a trained encoder.

    Raises:
        UserError: an argument is invalid, training diverges, or ``out`` cannot be written to, see
            :func:`unlearn_ext.unlearning.journal.check`.
    """
    settings = settings or Settings()
    to_forget, given = _by_request(forget, epsilon, after)
    check_model(model)
    check_task(task)
    validation = (_named(held_out[0]), held_out[1]) if held_out else None
    sets = _sets(to_forget, retain, validation)
    for name, images in sets.items():
        check_images(name, images, model)
    unmodified = to_train(model, settings.lora, settings.seed)
    start = unmodified if after is None else after.model(unmodified, settings.lora)
    run: dict[str, Any] = {}
    if out is not None:
        asked = wanted(given if isinstance(epsilon, Mapping) else epsilon, pictures)
        if after is not None:
            asked |= {"model to start from": weights_digest(start), **after.identity()}
        run = identity(model, sets, task, augment, settings, **asked)
    with journal(out, OUTPUTS, run, resume=resume, force=force) as kept:
        if kept.finished:
            warnings.warn(f"the run in {out} is finished: nothing is left to do.", stacklevel=2)
            assert out is not None  # only a run with a folder can be finished
            (point,) = ParetoFront.from_csv(Path(out) / FRONT)
            return restored(unmodified, Path(out) / point.name)
        objectives = Objectives.freeze(
            unmodified, next(iter(to_forget.values())), retain, task, augment=augment, settings=settings,
            variance=None if after is None else after.variance,
        )  # fmt: skip
        listed = listed or unnamed(to_forget, retain, validation)
        requests = _requests(objectives, to_forget, validation, listed, after)
        about = About(
            "run", listed, dataset, argv, given, None if after is None else after.folder,
            "" if after is None else after.point, _absent(after, to_forget),
        )  # fmt: skip
        return _reach(unmodified, start, requests, about, after, out, history, progress, kept, pictures)


def _by_request(
    forget: Images, epsilon: Epsilon | Mapping[str, Epsilon], after: Earlier | None
) -> tuple[dict[str, torch.Tensor], dict[str, Epsilon]]:
    """Return the images and the given ε of each request by its name; earlier requests have no given ε.

    Raises:
        UserError: a request has no ε, an ε has no request, or an ε is invalid.
    """
    to_forget = _named(forget)
    earlier = {row.request for row in after.requests} if after else set()
    own = [name for name in to_forget if name not in earlier]
    given = dict(epsilon) if isinstance(epsilon, Mapping) else dict.fromkeys(own, epsilon)
    if not own:
        raise UserError("there is nothing new to forget: give the images of at least one request.")
    if not isinstance(epsilon, Mapping) and len(own) > 1:
        raise UserError(f"there are {len(own)} requests, {', '.join(own)}: give an ε for each, by its name.")
    if missing := [name for name in own if name not in given]:
        raise UserError(f"there is no ε for the request {missing[0]}.")
    if unknown := [name for name in given if name not in own]:
        raise UserError(f"there is an ε for {unknown[0]}, which is no request; the requests are {', '.join(own)}.")
    for value in given.values():
        check_epsilon(value)
    ordered = {name: to_forget[name] for name in (*own, *(name for name in to_forget if name in earlier))}
    return ordered, {name: given[name] for name in own}


def _named(images: Images) -> dict[str, torch.Tensor]:
    return dict(images) if isinstance(images, Mapping) else {FORGET: images}


def _sets(
    forget: Mapping[str, torch.Tensor],
    retain: torch.Tensor,
    validation: tuple[Mapping[str, torch.Tensor], torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """Return all sets of images under names for messages and for the identity of the run."""
    single = len(forget) == 1
    sets = {FORGET if single else f"forget {name}": images for name, images in forget.items()} | {"retain": retain}
    if validation is not None:
        held_out, retained = validation
        for name, images in held_out.items():
            sets["forget validation" if single else f"forget {name} validation"] = images
        if len(retained):
            sets["retain validation"] = retained
    return sets


def _requests(
    objectives: Objectives,
    forget: Mapping[str, torch.Tensor],
    validation: tuple[Mapping[str, torch.Tensor], torch.Tensor] | None,
    listed: Sequence[NamedImage],
    after: Earlier | None,
) -> list[Request]:
    """Return the requests; all share the retain images, E0 and the units."""
    held_out: Objectives | None = None
    requests: list[Request] = []
    for name, images in forget.items():
        goal = objectives.toward(images) if requests else objectives
        unseen = validation[0].get(name) if validation else None
        if validation is not None and unseen is not None:
            retained = validation[1] if len(validation[1]) else None
            held_out = held_out.toward(unseen) if held_out else objectives.held_out(unseen, retained)
        files = [i.file for i in listed if (i.set, i.request, i.used_as) == (FORGET, name, TRAINING)]
        since = after.since(name) if after else ""
        requests.append(Request(name, goal, held_out if unseen is not None else None, files, since))
    return requests


def wanted(epsilon: Epsilon | Mapping[str, Epsilon], pictures: str) -> dict[str, Any]:
    """Return what was asked for as part of a run's identity; the arguments are those of :func:`unlearn`."""
    check_choice(pictures)
    return {"epsilon": epsilon, "pictures": pictures}


def _absent(after: Earlier | None, forget: Mapping[str, torch.Tensor]) -> list[Absent]:
    """Return the earlier requests whose images are not given."""
    return [
        Absent(row.request, row.epsilon, row.f1_unmodified, row.images, after.since(row.request))
        for row in (after.requests if after else ())
        if after is not None and row.request not in forget
    ]


def _reach(
    model: I2IModel,
    start: I2IModel,
    requests: Sequence[Request],
    about: About,
    after: Earlier | None,
    out: str | PathLike[str] | None,
    history: History | None,
    progress: Callback | None,
    kept: Journal,
    pictures: str,
) -> I2IModel:
    """Train a copy of ``start`` to the ε of all requests, and record it if there is a folder to write to."""
    began, first = time.monotonic(), requests[0]
    recorder = None
    if out is not None:
        folder = Path(out) if distributed.is_first() else None
        recorder = Recorder(model, requests, about, folder, progress, kept, pictures)
        recorder.stages, originals = 1, recorder.originals
    else:
        originals = {request.name: request.objectives.evaluate_f1(first.objectives.frozen) for request in requests}
    earlier = {row.request: row.epsilon for row in after.requests} if after else {}
    epsilons = {
        name: in_f1(about.given[name], original) if name in about.given else earlier[name]
        for name, original in originals.items()
    }
    name = point_name(epsilons[first.name])
    histories = {request.name: recorder.history(name, request.name) if recorder else History() for request in requests}
    if history is not None:
        histories[first.name] = history
        if recorder:
            recorder.histories[name, first.name] = history
    unlearned = copied(start)
    f1, f2 = _trained(unlearned, model, requests, epsilons, originals, histories, reporter(progress, name), kept)
    if recorder:
        made = Unlearned(unlearned, f1[first.name], f2, TRAINED)
        others = {request.name: (epsilons[request.name], f1[request.name]) for request in requests[1:]}
        recorder.record(name, EPSILON, epsilons[first.name], made, began, others)
        recorder.finish(ParetoFront(tuple(recorder.points)))
    else:
        warn_if_skipped([histories[first.name]])
    return unlearned


def _trained(
    unlearned: I2IModel,
    unmodified: I2IModel,
    requests: Sequence[Request],
    epsilons: Mapping[str, float],
    originals: Mapping[str, float],
    histories: Mapping[str, History],
    on_step: OnStep | None,
    kept: Journal,
) -> tuple[dict[str, float], float]:
    """Train a model in place to the ε of each request; return f1 of each, and f2.

    Training takes ``anchors_per_run`` times as many steps as an anchor of a sweep, because it starts farther from ε. If
    f1 of a request over all its images misses ε by more than the tolerance, half the steps of an anchor follow, with
    that ε shifted by the miss. What then still exceeds ε is removed by :func:`bring_within`.
    """
    objectives = requests[0].objectives
    steps, tolerance = steps_per_anchor(objectives), objectives.settings.tolerance
    for name, epsilon in epsilons.items():
        warn_if_outside(epsilon, 0.0, originals[name])
    trainer = _trainer(unlearned, requests, histories, on_step, kept)
    f1, f2 = _approach(trainer, epsilons, SCHEDULE.anchors_per_run * steps)
    missed = [name for name in epsilons if abs(f1[name] - epsilons[name]) > tolerance * originals[name]]
    if missed:
        aims = {name: 2 * epsilon - f1[name] if name in missed else epsilon for name, epsilon in epsilons.items()}
        f1, f2 = _approach(trainer, aims, max(steps // 2, 1))
    f1, f2 = bring_within(unlearned, unmodified, requests, epsilons, originals, (f1, f2))
    for name, epsilon in epsilons.items():
        warn_if_missed(epsilon, f1[name])
    return f1, f2


def _trainer(
    model: I2IModel,
    requests: Sequence[Request],
    histories: Mapping[str, History],
    on_step: OnStep | None,
    kept: Journal,
) -> Trainer:
    if len(requests) == 1:
        (request,) = requests
        return Trainer(model, request.objectives, histories[request.name], on_step, kept)
    return Trainer(model, {request.name: request.objectives for request in requests}, histories, on_step, kept)


def _approach(trainer: Trainer, aims: Mapping[str, float], steps: int) -> tuple[dict[str, float], float]:
    if len(aims) == 1:
        ((name, aim),) = aims.items()
        f1, f2 = trainer.approach(aim, steps)
        return {name: f1}, f2
    return trainer.approach_all(aims, steps)
