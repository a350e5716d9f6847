"""Relearning: how soon ordinary training brings the forgotten back."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch

from ..models import I2IModel
from ..pretrain import RECIPES
from ..pretrain.recipe import Minibatches
from ..tasks import Corruption
from ..unlearning.encoder import Encoder
from .context import Context, f1_and_f2
from .estimates import mean
from .linear_reader import mean_image
from .protocol import Audit, Finding, NotRun
from .reading import hole_errors

__all__ = ["FEW", "LR", "RELEARNING", "STEPS", "relearn"]

FEW = 16  # images to forget that unlearning used; also the batch size
STEPS = (5, 20, 100)
LR = 1e-4


def relearn(model: I2IModel, images: torch.Tensor, task: Corruption, lr: float, seed: int) -> Iterator[float]:
    """Train a model's encoder in place, one step per ``next``, and yield the losses without end.

    Args:
        model: model of a family that has a pretraining recipe.
        images: uint8 [N, C, H, W], or float in [-1, 1].
        task: the task T that hides part of an image.
        lr: learning rate of AdamW.
        seed: seed of the minibatches and of the loss's random numbers.
    """
    recipe = RECIPES[model.family]()
    batches = Minibatches(images.to(model.device), FEW, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.encoder_parameters(), lr=lr, weight_decay=0.0)
    while True:
        loss = recipe.loss(model, batches, task, recipe.steps)  # the loss at the end of pretraining
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def _findings(context: Context) -> Iterator[Finding]:
    forget, retain = context.forget.measured, context.retain.measured  # not trained on
    objectives, chance = context.objectives.held_out(forget, retain), mean_image(context, context.forget).value

    def measured(model: I2IModel, when: str) -> Iterator[Finding]:
        if context.has_latents_of_before:
            yield Finding.of(f"f1, f2 {when}", f1_and_f2(objectives, Encoder(model, context.settings)))
        if context.draws_quickly:
            errors = [mean(hole_errors(model, images, context.task)) for images in (forget, retain)]
            yield Finding.of(f"error in the hole {when}", errors, chance=chance)

    if context.model.family not in RECIPES:
        raise NotRun(f"family {context.model.family} has no pretraining loss here")
    yield from context.left_out()
    yield from measured(context.model, "before further training")
    few = context.forget.fitted[:FEW]
    for what, images in (("retained images", context.retain.fitted), (f"{len(few)} forgotten images", few)):
        model = copy.deepcopy(context.model)
        losses = relearn(model, images, context.task, LR, context.seed)
        for before, steps in itertools.pairwise((0, *STEPS)):
            for _ in range(before, steps):
                next(losses)
            yield from measured(model, f"after {steps} steps on {what}")


RELEARNING = Audit(
    "relearning",
    "The encoder is trained further with the family's pretraining loss. The sooner f1 rises and the error in the hole "
    "falls towards those of the unmodified model, the less was removed and the more only hidden. It says nothing about "
    "longer or other training.",
    _findings,
)
