"""Unlearning to one ε."""

from __future__ import annotations

import copy

import torch

from ..data.augment import Augment
from ..models import I2IModel
from ..tasks import Corruption
from .history import History
from .journal import Journal
from .objectives import Objectives
from .outcome import warn_if_missed, warn_if_outside, warn_if_skipped
from .pareto import point_name
from .progress import Callback, reporter
from .schedule import SCHEDULE, steps_per_anchor
from .settings import Settings
from .trainer import Trainer
from .validation import check_epsilon, check_model

__all__ = ["reach", "unlearn"]


def unlearn(
    model: I2IModel,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    task: Corruption,
    epsilon: float,
    augment: Augment | None = None,
    settings: Settings | None = None,
    history: History | None = None,
    progress: Callback | None = None,
) -> I2IModel:
    """Return a copy of the model trained to min f2 s.t. f1 ≤ ε (Feng et al., ICLR 2025, eq. 4).

    If ``torch.distributed`` is initialised, call it in every process with the same arguments. Each process computes its
    share of every minibatch, and all return the same model.

    Args:
        model: the model, which is not changed; f1 and f2 refer to its encoder.
        forget: images to forget, uint8 [N, C, H, W], or float32 in [-1, 1]; not corrupted.
        retain: images to retain, uint8 [M, C, H, W], or float32 in [-1, 1]; not corrupted.
        task: the task T, one of :mod:`unlearn_ext.tasks`.
        epsilon: f1 to reach, in variances of the frozen latents. 0: the latents are those of noise; the unmodified
            model's f1: nothing is forgotten. Warns if it is outside this range.
        augment: augmentation of training images: one of :mod:`unlearn_ext.data.augment`, or any function of images and
            the number of the draw. The frozen encoder then runs at every step.
        settings: training settings.
        history: receives every step, if given.
        progress: called at most ten times per second.

    Returns:
        A copy of the model with a trained encoder.

    Raises:
        UserError: an argument is invalid, or training diverges.
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
    """Do the same as :func:`unlearn`, with objectives that were frozen from the same model, and with a journal.

    Training takes ``anchors_per_run`` times as many steps as an anchor of a sweep, because it starts farther from ε. If
    f1 over the whole forget set misses ε by more than the tolerance, half the steps of an anchor follow, with ε shifted
    by the miss.
    """
    steps, tolerance, journal = steps_per_anchor(objectives), objectives.settings.tolerance, journal or Journal()
    original = journal.recall(lambda: objectives.evaluate_f1(objectives.frozen))
    warn_if_outside(epsilon, 0.0, original)
    unlearned = copy.deepcopy(model)
    history = History() if history is None else history
    trainer = Trainer(unlearned, objectives, history, reporter(progress, point_name(epsilon)), journal)
    f1, _ = trainer.approach(epsilon, SCHEDULE.anchors_per_run * steps)
    if abs(f1 - epsilon) > tolerance * original:
        f1, _ = trainer.approach(2 * epsilon - f1, max(steps // 2, 1))
    warn_if_missed(epsilon, f1, tolerance * original)
    warn_if_skipped([history])
    return unlearned
