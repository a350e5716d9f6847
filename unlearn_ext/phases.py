"""Phase I, the two boundaries, and Phase II, the walk between them (Feng et al., ICLR 2025, eq. 3 and 4)."""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import parallel
from .batches import Task, in_bytes, pixels
from .checks import check_epsilon, check_images, check_model, check_task
from .control import StepStats
from .data.augment import Augment
from .encoder import Encoder
from .errors import UserError
from .footprint import peak_mb, release
from .identity import identity
from .journal import Journal, journal
from .models import I2IModel, reconstruct
from .objectives import Objectives
from .outputs import Outputs
from .pareto import ParetoFront, ParetoPoint, point_name
from .progress import Callback, Progress
from .run import History, OnStep, Run, warn_if_outside, warn_if_skipped
from .settings import Settings
from .writing import save_folder, write_arrays, write_table, write_text

HIGH, LOW, EPSILON = "boundary-high", "boundary-low", "epsilon"
FRONT = "front.csv"  # written last: where it is, the run is whole
_FIGURES = [f"{name}.{kind}" for name in ("front", "steering", "convergence", "strip") for kind in ("png", "svg")]
OUTPUTS = Outputs(
    "sweep",
    FRONT,
    models=rf"{HIGH}|{LOW}|eps--?\d+\.\d{{4}}",
    # The command line, the evaluation and the report add the second line to what a sweep itself writes.
    files=(
        FRONT, "history.csv", "samples.npz", "metrics.json",
        "sources.json", "metrics.csv", "report.html", *(f"figures/{name}" for name in _FIGURES),
    ),
)  # fmt: skip
HELD_OUT = ("forget_validation", "retain_validation")
F2_TOLERANCE = 1e-3  # f2 that counts as no cost, in variances of the frozen latents
STALL = 0.02  # f1 is at its infimum when a run lowers it by less than this share of f1 before unlearning …
MAX_DESCENTS = 6  # … or after so many runs
MAX_PROBES = 6  # of the lowest boundary
ENOUGH, AIM = 0.6, 0.8  # of the tolerance of f2: a probe that uses so much ends the search, the next is to use so much
REACH = 1 / 3  # of the way between the boundaries: a run over it takes all steps, one to a nearer ε as much less …
SHARE = 0.25  # … but no less than this share of them
SAMPLES = 6  # images of each side in samples.npz


def sweep(
    model: I2IModel,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    task: Task,
    points: int = 9,
    epsilons: Sequence[float] | None = None,
    only: Sequence[int] | None = None,
    cold: bool = False,
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    augment: Augment | None = None,
    out: str | PathLike[str] | None = None,
    dataset: str = "",
    settings: Settings | None = None,
    progress: Callback | None = None,
    resume: bool = False,
    force: bool = False,
) -> ParetoFront:
    """Both boundaries, and min f2 s.t. f1 ≤ ε for ε between them.

    The walk goes from the unmodified model towards the highest completeness; every run goes on from its neighbour, with
    the fewer steps the nearer that is.
    First f1*, the infimum of f1, is found by descending with ψ = α‖∇f1‖² until f1 stalls; then the lowest boundary, the
    points with ε falling, and last the highest boundary, which is the same problem at ε = f1*, as near as f1 is met at
    all: the tolerance above it, for what is closer cannot be told from f1* and costs a multiple of f2. Points that no
    other is to depend on begin at the unmodified model instead, and cost more for a larger f2.

    Where ``torch.distributed`` is initialised, call it in every process with the same arguments: each works on its
    share of every minibatch, all walk the same way, and the first writes.

    Args:
        model: left as it is; its encoder is the frozen one that f1 and f2 refer to.
        forget: uint8 [N, C, H, W], or float32 in [-1, 1]; not corrupted.
        retain: uint8 [M, C, H, W], or float32 in [-1, 1]; not corrupted.
        task: T, one of :mod:`unlearn_ext.tasks`.
        points: how many ε, spaced evenly strictly between the boundaries.
        epsilons: these instead, to four decimals; warns for any outside the boundaries.
        only: numbers of the points to compute, from 1, with the least ε, on, or places in ``epsilons``; neither the
            others nor the highest boundary are. These models are what a whole sweep with ``cold`` makes of them.
        cold: begin every point at the unmodified model.
        held_out: forget and retain images that are not trained on, to validate with; without them the validation
            columns are NaN.
        augment: of training images, one of :mod:`unlearn_ext.data.augment` or any function of images and the number of
            a draw. The frozen encoder then works at every step.
        out: folder for the models, ``front.csv``, ``history.csv``, ``metrics.json`` and ``samples.npz``.
        dataset: what the images are, for ``metrics.json``.
        settings: of each run.
        progress: called at most ten times a second.
        resume: go on with this sweep where an earlier process left it in ``out``, and end as that would have ended; one
            that is finished there is returned, with a warning.
        force: replace an earlier sweep in ``out``, finished or not. What it wrote is removed, and no other file.

    Returns:
        The front, from the highest completeness to the lowest.

    Raises:
        UserError: f1 cannot be lowered at all; or ``out`` cannot be written to; or, before anything is trained,
            :func:`unlearn_ext.journal.check` refuses ``out``: it holds another run, or files that no run wrote.
    """
    settings = settings or Settings()
    if points < 0:
        raise UserError(f"points is {points}; as many models cannot be put between the boundaries.")
    for epsilon in epsilons or ():
        check_epsilon(epsilon)
    count = points if epsilons is None else len(epsilons)
    if wrong := [number for number in only or () if not 1 <= number <= count]:
        raise UserError(f"there is no point number {wrong[0]}; the numbers are 1 to {count}.")
    check_model(model)
    check_task(task)
    asked = wanted(points, epsilons, only, cold)
    sets = {"forget": forget, "retain": retain, **dict(zip(HELD_OUT, held_out or (), strict=False))}
    for name, images in sets.items():
        check_images(name.replace("_", " "), images, model)
    run = {} if out is None else identity(model, sets, task, augment, settings, **asked)
    with journal(out, OUTPUTS, run, resume=resume, force=force) as kept:
        if kept.finished:
            warnings.warn(f"the run in {out} is finished: nothing is left to do.", stacklevel=2)
            return ParetoFront.from_csv(Path(out) / FRONT)
        objectives = Objectives.freeze(model, forget, retain, task, augment=augment, settings=settings)
        walk = _Walk(model, objectives, held_out, out if parallel.is_first() else None, progress, kept, asked["cold"])
        walk.stages = 2 + (count + 1 if only is None else len(asked["only"]))
        infimum = walk.find_infimum()
        low = walk.find_lowest_boundary(infimum)
        if epsilons is None:
            epsilons = [walk.high + (low.epsilon - walk.high) * (i + 1) / (points + 1) for i in range(points)]
        for epsilon in _distinct(epsilons if only is None else [epsilons[number - 1] for number in only]):
            warn_if_outside(epsilon, infimum, low.epsilon)
            walk.step_to(point_name(epsilon), EPSILON, epsilon)
        if only is None:
            walk.step_to(HIGH, HIGH, walk.high)
        return walk.finish(dataset)


class _Walk:
    """A model walked along the front, and what is noted and saved on the way."""

    def __init__(
        self,
        model: I2IModel,
        objectives: Objectives,
        held_out: tuple[torch.Tensor, torch.Tensor] | None,
        out: str | PathLike[str] | None,
        progress: Callback | None,
        kept: Journal,
        cold: bool,
    ) -> None:
        self.start, self.journal, self.cold = time.monotonic(), kept, cold
        self.original, self.objectives, self.settings = model, objectives, objectives.settings
        self.task, self.progress = objectives.forget.task, progress
        self.model = copy.deepcopy(model)
        self.run: Run  # of the last point
        self.validation = objectives.held_out(*held_out) if held_out else None
        self.f1_original, self.f2_original = kept.recall(lambda: objectives.evaluate(objectives.frozen))
        self.histories: dict[str, History] = {}
        self.points: list[ParetoPoint] = []
        self.stage = self.stages = 0
        self.out = None if out is None else Path(out)
        shown = [pixels(side.images[:SAMPLES]) for side in (objectives.forget, objectives.retain)]
        self.show, self.is_forget = torch.cat(shown), [True] * len(shown[0]) + [False] * len(shown[1])
        unmodified = reconstruct(model, self.show, self.task)
        samples = {"original": self.show, "corrupted": self.task(self.show), "unmodified": unmodified}
        self.samples = {name: in_bytes(images) for name, images in samples.items()}
        self.f1_star = math.nan
        self.low_method = ""

    @property
    def high(self) -> float:
        """ε of the highest boundary."""
        return self.f1_star + self.settings.tolerance * self.f1_original

    def find_infimum(self) -> float:
        """f1*: descend from the unmodified model until a run lowers f1 by less than ``STALL`` of what it was at first.

        The encoder could in the end map every forget image to one latent: the infimum in the limit is next to 0, and
        its last per cents cost ever more steps and ever more f2. The rule says where that is no longer worth it.
        """
        model = copy.deepcopy(self.original)
        run = self._run(HIGH, model)
        f1 = self.f1_original
        for _ in range(MAX_DESCENTS):
            before = f1
            run.descend(self.settings.steps)
            f1 = min(run.evaluate_f1(), before)
            if not before - f1 > STALL * self.f1_original:
                break
        if not f1 < self.f1_original:
            raise UserError(
                f"f1 did not fall below {f1:.4g} in {run.steps_taken} steps, so there is nothing to walk between; take "
                "more steps or a higher learning rate."
            )
        self.f1_star = f1
        self.stage += 1
        return f1

    def find_lowest_boundary(self, infimum: float) -> ParetoPoint:
        """The ε at which min f2 s.t. f1 ≤ ε first costs ``F2_TOLERANCE``.

        Near the unmodified model f2 grows with the square of the f1 given up, so each probe's f2 tells where the next
        one should be; it starts from the one before, whose f2 has fallen further than a new start's would. Only a probe
        within the tolerance is accepted. The first that also uses ``ENOUGH`` of it ends the search; else the one that
        forgets most is taken, and the unmodified model where there is none.
        """
        span = self.f1_original - infimum
        best, best_gap, best_values = _encoder_state(self.original), 0.0, (self.f1_original, self.f2_original)
        gap, probes = 0.15 * span, 0
        start, self.run = time.monotonic(), self._run(LOW, self.model)
        while probes < MAX_PROBES and gap > best_gap:
            probes += 1
            f1, f2 = self.run.meet(self.f1_original - gap, self.f1_original)
            if f2 <= F2_TOLERANCE:
                best = self.journal.set_aside(lambda: _encoder_state(self.model))
                best_gap, best_values = gap, (f1, f2)
                if f2 >= ENOUGH * F2_TOLERANCE:
                    break
            given_up = max(self.f1_original - f1, 1e-6 * span)
            gap = min(given_up * math.sqrt(AIM * F2_TOLERANCE / max(f2, 1e-3 * F2_TOLERANCE)), 2 * gap, 0.5 * span)
        _restore_encoder(self.model, best)
        self.low_method = (
            f"the least ε at which min f2 subject to f1 ≤ ε keeps f2 within {F2_TOLERANCE:g}, found from the side of "
            f"the unmodified model with {probes} constrained runs, each placed by f2 ∝ (f1 given up)²; f2 verified "
            "over the whole retain set"
        )
        return self._note(LOW, LOW, self.f1_original - best_gap, best_values, start)

    def step_to(self, name: str, role: str, epsilon: float) -> ParetoPoint:
        """min f2 s.t. f1 ≤ ε, from where the walk is, or from the unmodified model.

        From where the walk is, it goes on with what the optimizer knows by then: moments begun anew take the model from
        its place first (small VQ-GAN, nine points: a quarter more steps, for f2 a third higher). The nearer ε is to the
        one before, the fewer steps it is given, so that many points cost not much more than a few.
        """
        start, steps = time.monotonic(), self.settings.steps
        if self.cold:
            _restore_encoder(self.model, _encoder_state(self.original))
            self.run = self._run(name, self.model)
        else:
            self.run.tell(*self._told(name))
        if role == EPSILON and not self.cold:
            way = abs(self.points[-1].epsilon - epsilon) / (self.points[0].epsilon - self.high)
            steps = max(round(steps * min(max(way / REACH, SHARE), 1)), 1)
        return self._note(name, role, epsilon, self.run.meet(epsilon, self.f1_original, steps), start)

    def finish(self, dataset: str) -> ParetoFront:
        """The front; with a folder to write to, also its files."""
        front = ParetoFront(tuple(self.points))
        if self.out is not None:
            self._write_history(front)
            self._write_samples()
            metrics = json.dumps(self._metrics(front, dataset), indent=2, ensure_ascii=False)
            write_text(self.out / "metrics.json", f"{metrics}\n")
            front.to_csv(self.out / FRONT)
        warn_if_skipped(self.histories.values())
        self.journal.finish()
        return front

    def _run(self, name: str, model: I2IModel) -> Run:
        release()
        return Run(model, self.objectives, self.settings, *self._told(name), self.journal)

    def _told(self, name: str) -> tuple[History, OnStep | None]:
        """Return the history and progress callback for a front point."""
        stage = self.stage

        def on_step(step: int, steps: int, stats: StepStats, f2: float) -> None:
            self.progress(
                Progress(name, stage, self.stages, step, steps, stats.constraint.item(), f2, stats.lam.item())
            )

        return self.histories.setdefault(name, History()), on_step if self.progress else None

    def _note(self, name: str, role: str, epsilon: float, values: tuple[float, float], start: float) -> ParetoPoint:
        validation, self.samples[name], seconds = self.journal.recall(lambda: self._judged_and_saved(name, start))
        point = ParetoPoint(name, role, epsilon, *values, *validation, self.run.steps_taken, seconds)
        self.points.append(point)
        self.stage += 1
        return point

    def _judged_and_saved(self, name: str, start: float) -> tuple[tuple[float, float], torch.Tensor, float]:
        """(f1, f2) of held-out images, the sample pictures, and the seconds since the start."""
        encode = Encoder(self.model, self.settings)
        validation = self.validation.evaluate(encode) if self.validation else (math.nan, math.nan)
        pictures = in_bytes(reconstruct(self.model, self.show, self.task))
        if self.out is not None:
            save_folder(self.out / name, self.model.save_pretrained, replace=True)
        return validation, pictures, time.monotonic() - start

    def _write_history(self, front: ParetoFront) -> None:
        names = ["point", "step", "epsilon", "f1", "f2", "psi", "lam", "skipped"]
        rows = ((point.name, *row) for point in front for row in self.histories[point.name].rows())
        write_table(self.out / "history.csv", names, rows)

    def _write_samples(self) -> None:
        pictures = {name: images.numpy() for name, images in self.samples.items()}
        write_arrays(self.out / "samples.npz", {"is_forget": np.array(self.is_forget), **pictures})

    def _metrics(self, front: ParetoFront, dataset: str) -> dict[str, object]:
        from . import __version__

        # The worst corner: nothing forgotten, and the retained images treated as the highest boundary treats them.
        reference = (self.f1_original, max(point.f2 for point in front))
        misses = [abs(point.f1 - point.epsilon) for point in front if self.f1_star <= point.epsilon <= self.f1_original]
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
            "f1_star": self.f1_star,
            "f2_tolerance": F2_TOLERANCE,
            "boundary_low_method": self.low_method,
            "hypervolume": front.hypervolume(reference),
            "reference_point": reference,
            "max_epsilon_miss": max(misses) / (self.f1_original - self.f1_star),
            "samples_from": "training images",
            "seconds": time.monotonic() - self.start,
            "peak_memory_mb": peak_mb(),
        }


def wanted(points: int, epsilons: Sequence[float] | None, only: Sequence[int] | None, cold: bool) -> dict[str, Any]:
    """Return which points a sweep is asked for, as part of its identity; the arguments are those of :func:`sweep`."""
    which = {"points": points} if epsilons is None else {"epsilons": _distinct(epsilons)}
    return {**which, "cold": cold or only is not None, "only": None if only is None else sorted(set(only))}


def _distinct(epsilons: Sequence[float]) -> list[float]:
    """Falling, to the four decimals that a point's name has: no two points may share a folder."""
    return sorted({round(epsilon, 4) for epsilon in epsilons}, reverse=True)


def _encoder_state(model: I2IModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.encoder_parameters()]


@torch.no_grad()
def _restore_encoder(model: I2IModel, state: list[torch.Tensor]) -> None:
    for parameter, value in zip(model.encoder_parameters(), state, strict=True):
        parameter.copy_(value)
