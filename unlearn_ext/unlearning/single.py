"""Unlearn once, to one ε."""

from __future__ import annotations

import copy
import warnings

import torch

from ..data.augment import Augment
from ..models import I2IModel
from ..optim.control import StepStats
from .batches import Task
from .history import History
from .journal import Journal
from .objectives import Objectives
from .pareto import point_name
from .progress import Callback, Progress
from .settings import Settings
from .trainer import Run, steps_per_anchor, warn_if_outside, warn_if_skipped
from .validation import check_epsilon, check_model

__all__ = ["LENGTH", "reach", "unlearn", "warn_if_missed"]

LENGTH = 3  # anchors' steps: see docs/theory.md


def unlearn(
    model: I2IModel,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    task: Task,
    epsilon: float,
    augment: Augment | None = None,
    settings: Settings | None = None,
    history: History | None = None,
    progress: Callback | None = None,
) -> I2IModel:
    """min f2 s.t. f1 ≤ ε (Feng et al., ICLR 2025, eq. 4), from the model as it is.

    Where ``torch.distributed`` is initialised, call it in every process with the same arguments: each works on its
    share of every minibatch, and all return the same model.

    Args:
        model: left as it is; its encoder is the frozen one that f1 and f2 refer to.
        forget: uint8 [N, C, H, W], or float32 in [-1, 1]; not corrupted.
        retain: uint8 [M, C, H, W], or float32 in [-1, 1]; not corrupted.
        task: T, one of :mod:`unlearn_ext.tasks`.
        epsilon: f1 to reach, in variances of the frozen latents: 0 is noise, the unmodified model's own f1 is nothing
            forgotten. Warns when it is outside.
        augment: of training images, one of :mod:`unlearn_ext.data.augment` or any function of images and the number of
            a draw. The frozen encoder then works at every step.
        settings: of the training.
        history: filled with every step, if given.
        progress: called at most ten times a second.

    Returns:
        A copy of the model, with the encoder trained.
    """
    check_epsilon(epsilon)
    check_model(model)
    objectives = Objectives.freeze(model, forget, retain, task, augment=augment, settings=settings)
    return reach(epsilon, model, objectives, history=history, progress=progress)


def reach(
    epsilon: float,
    model: I2IModel,
    objectives: Objectives,
    *,
    history: History | None = None,
    progress: Callback | None = None,
    journal: Journal | None = None,
) -> I2IModel:
    """Do the same as :func:`unlearn`, with objectives that were frozen from the same model and with a journal.

    It takes ``LENGTH`` times the steps of an anchor of a sweep, for it starts farther away. Where ε is missed over the
    whole forget set, it takes half as many steps as an anchor more, towards an ε that makes up for the miss.
    """
    steps, tolerance, journal = steps_per_anchor(objectives), objectives.settings.tolerance, journal or Journal()
    original = journal.recall(lambda: objectives.evaluate_f1(objectives.frozen))
    warn_if_outside(epsilon, 0.0, original)
    unlearned = copy.deepcopy(model)
    name = point_name(epsilon)

    def on_step(step: int, steps: int, stats: StepStats, f2: float) -> None:
        progress(Progress(name, 0, 1, step, steps, stats.constraint.item(), f2, stats.lam.item()))

    history = History() if history is None else history
    run = Run(unlearned, objectives, history, on_step if progress else None, journal)
    f1, _ = run.approach(epsilon, LENGTH * steps)
    if abs(f1 - epsilon) > tolerance * original:
        f1, _ = run.approach(2 * epsilon - f1, max(steps // 2, 1))
    warn_if_missed(epsilon, f1, tolerance * original)
    warn_if_skipped([history])
    return unlearned


def warn_if_missed(epsilon: float, f1: float, tolerance: float) -> None:
    """Warn when f1 ended above ε by more than the tolerance."""
    if f1 - epsilon > tolerance:
        warnings.warn(
            f"ε = {epsilon:.4g} was not reached: f1 is {f1:.4g}. Either this encoder cannot forget that much of these "
            "images, or it needs more steps (--steps).",
            stacklevel=3,
        )
