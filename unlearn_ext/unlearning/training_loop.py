"""What every way to unlearn is trained by: minibatches of both sides, backward passes, steps at a falling rate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch

from .._utils import distributed
from ..models import I2IModel
from .batches import Batch, pairs
from .encoder import Encoder
from .objectives import Objectives
from .settings import Settings

__all__ = ["BETAS", "WARMUP", "Loop"]

BETAS = (0.9, 0.999)  # AdamW's own: decay of its averages of the gradient and of its square
# Steps that the first average takes to fill. At the unmodified model ∇f2 = 0, so AdamW's first steps are signs of ∇f1,
# which cost f2.
WARMUP = round(1 / (1 - BETAS[0]))


class Loop:
    """Trains one model's encoder; in several processes each takes its share of every minibatch.

    Args:
        model: trained in place.
        objectives: whose images are trained on.
        settings: batches, seed, precision.
        optimizer: of the encoder's parameters.

    Attributes:
        encode: E in training.
        scaler: of the losses, under float16; else None.
        steps_taken: so far; set before the first of them where others were taken before.
    """

    def __init__(
        self, model: I2IModel, objectives: Objectives, settings: Settings, optimizer: torch.optim.Optimizer
    ) -> None:
        self.objectives, self.settings, self.optimizer = objectives, settings, optimizer
        self.encode = Encoder(model, settings, training=True)
        scales = settings.precision == "float16"
        self.scaler = torch.amp.GradScaler(model.device.type) if scales else None
        self.steps_taken = 0

    def minibatches(self, lr: float, steps: int, *, taken: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """Yield a minibatch to forget and one to retain for each of so many steps, and set the learning rate.

        The rate is held for half of the steps and then falls linearly to 0. The first ``WARMUP`` steps of the loop rise
        to it.

        Args:
            lr: the rate that is held.
            steps: how many.
            taken: how many of these an earlier process took.
        """
        for step in range(taken, steps):
            rising, falling = (self.steps_taken + 1) / WARMUP, 2 * (steps - step) / steps
            self.optimizer.param_groups[0]["lr"] = lr * min(rising, falling, 1.0)
            yield next(self._batches)

    @cached_property
    def _batches(self) -> Iterator[tuple[Batch, Batch]]:
        sides, settings = (self.objectives.forget, self.objectives.retain), self.settings
        return pairs(*sides, settings.batch_size, settings.seed, used=self.steps_taken)

    def backward(self, loss: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Adds a minibatch's gradient to ``p.grad``; of several processes, the mean over the whole minibatch.

        Returns:
            the loss over the whole minibatch, 0-d.
        """
        loss = loss * batch.weight
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return distributed.average(loss.detach(), self.optimizer.param_groups[0]["params"])

    def step(self) -> None:
        """The optimizer's, after which no gradient is left."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self.steps_taken += 1
