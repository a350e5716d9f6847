"""One model by one method."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from ..loop import Loop
from ..models import I2IModel
from ..objectives import Objectives
from ..progress import Throttle
from .method import Method, taken

OnStep = Callable[[int, float, float], None]  # steps taken, loss on the forget set, loss on the retain set


def train(
    method: type[Method],
    model: I2IModel,
    objectives: Objectives,
    *,
    value: float | None = None,
    steps: int | None = None,
    on_step: OnStep | None = None,
) -> I2IModel:
    """Unlearn as :func:`unlearn_ext.unlearn` does, minibatch for minibatch, but by another method.

    Args:
        method: one of :data:`unlearn_ext.baselines.METHODS`.
        model: left as it is; the one that the objectives were frozen from.
        objectives: whose images are trained on, under their settings.
        value: of the method's knob; its default where None.
        steps: two gradients each; the settings' by default.
        on_step: called at most ten times a second.

    Returns:
        A copy of the model, with the encoder trained.

    Raises:
        UserError: the method is not defined for the model's family, or its knob has no default.
    """
    settings, unlearned, throttle = objectives.settings, copy.deepcopy(model), Throttle()
    parameters = unlearned.encoder_parameters()
    chosen = method(unlearned, objectives, value)
    # As ours: without weight decay, which would pull the encoder away from where f2 is least.
    loop = Loop(unlearned, objectives, settings, torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0))
    for forget, retain in loop.minibatches(settings.lr, steps or settings.steps):
        forget_loss = loop.backward(chosen.forget_loss(loop.encode, forget, retain), forget)
        g1 = taken(parameters)
        retain_loss = loop.backward(chosen.retain_loss(loop.encode, retain), retain)
        g2 = taken(parameters)
        for parameter, gradient in zip(parameters, chosen.combine(forget_loss, g1, g2), strict=True):
            parameter.grad = gradient
        loop.step()
        if on_step is not None and throttle.due():
            on_step(loop.steps_taken, forget_loss.item(), retain_loss.item())
    return unlearned
