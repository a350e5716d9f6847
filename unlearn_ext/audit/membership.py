"""Membership inference: can an image that unlearning used be told from one that was never trained on?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..models import I2IModel
from .context import ENCODED, Context, ImageSet
from .estimates import Estimate, auc
from .protocol import Audit, Finding, NotRun
from .reading import hole_errors

__all__ = ["MEMBERSHIP"]

CHANCE = 0.5

_Scores = Callable[[torch.Tensor], np.ndarray]


def _findings(context: Context) -> Iterator[Finding]:
    def few_errors(images: torch.Tensor) -> np.ndarray:
        return -_errors(context, images)

    def more_errors_than_before(images: torch.Tensor) -> np.ndarray:
        return _errors(context, images) - _errors(context, images, context.before)

    def near_noise(images: torch.Tensor) -> np.ndarray:
        return -_distances(context, images)

    if not len(context.forget.held_out):
        raise NotRun("there are no held-out images of the same classes to compare the training images with")
    if context.draws_quickly:
        yield _attack(context, "loss-threshold attack (Yeom et al. 2018)", few_errors)
        if context.model is not context.before:
            yield _attack(context, "change of the error from the unmodified model", more_errors_than_before)
    else:
        yield Finding.not_run("attacks on the error", "pictures of this family take minutes")
    if context.has_latents_of_before:
        yield Finding.of("AUC: latents near those of noise", [_area(context.forget, near_noise)], chance=CHANCE)


def _attack(context: Context, name: str, scores: _Scores) -> Finding:
    """Return the AUC of scores that are higher for supposed members."""
    sides = (_area(part, scores) for part in (context.forget, context.retain))
    return Finding.of(f"AUC: {name}", sides, chance=CHANCE)


def _area(part: ImageSet, scores: _Scores) -> Estimate | None:
    member, other = _both(part)
    return auc(scores(member), scores(other)) if len(other) else None


def _both(part: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    return part.training[:ENCODED], part.held_out[:ENCODED]


def _errors(context: Context, images: torch.Tensor, model: I2IModel | None = None) -> np.ndarray:
    return hole_errors(model or context.model, images, context.task)


def _distances(context: Context, images: torch.Tensor) -> np.ndarray:
    """Return f1 of each image alone, float64 [N]."""
    objectives = context.objectives.held_out(images, context.retain.training[:1])
    encode = context.encode
    with torch.no_grad():
        batches = objectives.forget.batches(torch.arange(len(images)), 1)
        return np.array([objectives.f1(encode, batch).item() for batch in batches])


MEMBERSHIP = Audit(
    "membership",
    "Each attack gives every image a score and calls it a training image if the score is high. The AUC is the "
    "probability that a training image has a higher score than a held-out one of the same classes: 0.5 is guessing. A "
    "value far below 0.5 gives the images away as well: an attacker only has to reverse the score. These attacks use "
    "one or two models; stronger ones train many models of their own.",
    _findings,
)
