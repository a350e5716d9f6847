"""Unlearn once, to one ε."""

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

    It takes ``anchors_per_run`` times the steps of an anchor of a sweep, since it starts farther away. Where ε is
    missed over the whole forget set, it takes half as many steps as an anchor more, towards an ε that makes up for the
    miss.
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
