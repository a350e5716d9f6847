"""The training loop that all methods share: minibatches, backward passes, steps and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch

from .._utils import distributed
from ..models import I2IModel
from .batches import Batch, Side, together
from .encoder import Encoder
from .objectives import Objectives
from .settings import Settings

__all__ = ["BETAS", "WARMUP", "Loop"]

BETAS = (0.9, 0.999)  # torch's defaults for AdamW
# Time constant of AdamW's average of gradients, in steps. At the unmodified model ∇f2 = 0, so AdamW's first steps are
# signs of ∇f1; at the full learning rate they would increase f2.
WARMUP = round(1 / (1 - BETAS[0]))


class Loop:
    """A training loop for one model's encoder; with several processes, each computes its share of every minibatch.

    Args:
        model: the model; its encoder is trained in place.
        objectives: objectives with the training images.
        settings: batch size, seed and precision.
        optimizer: optimizer of the encoder's parameters.
        forgets: images to forget of each request; by default those of ``objectives``.

    Attributes:
        encode: the encoder for training.
        scaler: gradient scaler with float16; else None.
        steps_taken: number of steps so far; to resume, set it before the first step.
    """

    def __init__(
        self,
        model: I2IModel,
        objectives: Objectives,
        settings: Settings,
        optimizer: torch.optim.Optimizer,
        forgets: Sequence[Side] = (),
    ) -> None:
        self.objectives, self.settings, self.optimizer = objectives, settings, optimizer
        self._sides = (*(forgets or (objectives.forget,)), objectives.retain)
        self.encode = Encoder(model, settings, training=True)
        scales = settings.precision == "float16"
        self.scaler = torch.amp.GradScaler(model.device.type) if scales else None
        self.steps_taken = 0

    def minibatches(self, lr: float, steps: int, *, taken: int = 0) -> Iterator[tuple[Batch, ...]]:
        """Yield a forget minibatch of each request and a retain minibatch for each step, and set the learning rate.

        The learning rate is constant for half of the steps and then decreases linearly to 0. Over the first ``WARMUP``
        steps of the loop, it increases linearly to ``lr``.

        Args:
            lr: the constant learning rate.
            steps: number of steps.
            taken: number of these steps that an earlier process took.
        """
        for step in range(taken, steps):
            rising, falling = (self.steps_taken + 1) / WARMUP, 2 * (steps - step) / steps
            self.optimizer.param_groups[0]["lr"] = lr * min(rising, falling, 1.0)
            yield next(self._batches)

    @cached_property
    def _batches(self) -> Iterator[tuple[Batch, ...]]:
        return together(self._sides, self.settings.batch_size, self.settings.seed, used=self.steps_taken)

    def backward(self, loss: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Add the gradient of a minibatch's loss to ``p.grad``; with several processes, over the whole minibatch.

        Returns:
            The loss over the whole minibatch, 0-d.
        """
        loss = loss * batch.weight
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return distributed.average(loss.detach(), self.optimizer.param_groups[0]["params"])

    def step(self) -> None:
        """Take an optimizer step and clear the gradients."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self.steps_taken += 1
