"""Train one model with one method, for one value of its knob after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch

from ..models import I2IModel
from ..unlearning.objectives import Objectives
from ..unlearning.progress import Throttle
from ..unlearning.schedule import steps_per_anchor
from ..unlearning.training_loop import BETAS, Loop
from .method import Method, taken

__all__ = ["OnLosses", "train"]

OnLosses = Callable[[int, float, float], None]  # steps taken, loss on the forget set, loss on the retain set


def train(
    method: type[Method],
    model: I2IModel,
    objectives: Objectives,
    *,
    values: Sequence[float] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    on_step: OnLosses | None = None,
) -> Iterator[I2IModel]:
    """Train a method for the values of its knob, one after the other, and yield the model after each value.

    There is one copy of the model, one optimizer and one ``method``. Parameters, AdamW's moments, the order of the
    minibatches and the method's state (multipliers, averages, masks) continue from one value to the next. The learning
    rate schedule is that of our sweep, see :class:`unlearn_ext.unlearning.training_loop.Loop`. A cold run is a sweep
    with one value.

    Args:
        method: one of :data:`unlearn_ext.baselines.METHODS`.
        model: the model that the objectives were frozen from; it is not changed.
        objectives: images to train on, and settings.
        values: values of the method's knob, one or more, in this order; by default the method's ``grid``, or its
            ``default`` if the grid is empty. A method without a knob ignores them and takes ``steps`` steps for each.
        steps: number of steps for each value, with two gradients per step; by default that of an anchor of our sweep.
        lr: learning rate at the start of each value; by default that of the settings.
        on_step: called at most ten times per second; its step count is over the whole sweep.

    Yields:
        The copy of the model with its encoder trained. It is the same object for every value, so copy it if you need it
        after the next iteration.

    Raises:
        UserError: at the first ``next``: the method is not defined for the model's family, or its knob has neither
            values nor a default.

    Example:
        ``(unlearned,) = train(METHODS["composite"], model, objectives, values=[0.2])``
    """
    settings, trained, throttle = objectives.settings, copy.deepcopy(model), Throttle()
    lr = settings.lr if lr is None else lr
    steps = steps_per_anchor(objectives) if steps is None else steps
    swept: Sequence[float | None] = (method.grid or [method.default]) if values is None else values
    parameters, chosen = trained.encoder_parameters(), method(trained, objectives, swept[0])
    # No weight decay, as in our runs: it would move the encoder away from the minimum of f2.
    loop = Loop(trained, objectives, settings, torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0))
    for value in swept:
        chosen.value = value
        for forget, retain in loop.minibatches(lr, steps):
            forget_loss = loop.backward(chosen.forget_loss(loop.encode, forget, retain), forget)
            g1 = taken(parameters)
            retain_loss = loop.backward(chosen.retain_loss(loop.encode, retain), retain)
            g2 = taken(parameters)
            for parameter, gradient in zip(parameters, chosen.combine(forget_loss, g1, g2), strict=True):
                parameter.grad = gradient
            loop.step()
            if on_step is not None and throttle.due():
                on_step(loop.steps_taken, forget_loss.item(), retain_loss.item())
        yield trained
