"""Membership inference: can an image that unlearning used be told from one that was never trained on?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..models import I2IModel
from .context import Context, ImageSet
from .estimates import auc
from .protocol import Audit, Finding, NotRun
from .reading import hole_errors

__all__ = ["CHANCE", "MEMBERSHIP"]

CHANCE = 0.5  # AUC of guessing
_IMAGES = 512  # limit on the training images and on the held-out ones of a set

_Scores = tuple[np.ndarray, np.ndarray]  # of training images and of held-out images


def _findings(context: Context) -> Iterator[Finding]:
    if not len(context.forget.held_out):
        raise NotRun("there are no held-out images of the same classes to compare the training images with")
    yield from context.left_out()
    if context.draws_quickly:
        sets = [part for part in (context.forget, context.retain) if len(part.held_out)]
        after = [_errors(context, context.model, part) for part in sets]
        areas = [auc(-member, -other) for member, other in after]
        yield Finding.of("AUC: loss-threshold attack (Yeom et al. 2018)", areas, chance=CHANCE)
        if context.model is not context.before:
            before = [_errors(context, context.before, part) for part in sets]
            areas = [auc(now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True)]
            yield Finding.of("AUC: rise of the error since the unmodified model", areas, chance=CHANCE)
    if context.has_latents_of_before:
        member, other = (_distances(context, images) for images in _images(context.forget))
        yield Finding.of("AUC: latents near those of noise", [auc(-member, -other)], chance=CHANCE)


def _images(part: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    return part.training[:_IMAGES], part.held_out[:_IMAGES]


def _errors(context: Context, model: I2IModel, part: ImageSet) -> _Scores:
    """Return the error in the hole of each training image and of each held-out image."""
    member, other = (hole_errors(model, images, context.task) for images in _images(part))
    return member, other


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
