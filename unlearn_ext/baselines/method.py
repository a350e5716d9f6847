"""Base class of the methods: a loss on the forget set, a loss on the retain set, and a combination of gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from ..errors import UserError
from ..models import I2IModel
from ..unlearning.batches import Batch
from ..unlearning.objectives import Encode, Objectives

__all__ = ["Gradient", "Method", "Weights", "taken"]

Gradient = list[torch.Tensor]
Weights = tuple[float | torch.Tensor, float | torch.Tensor]


class Method:
    """A method with the losses f1 and f2, and steps along value·∇f1 + ∇f2; subclasses change these.

    The knob of a method is the hyperparameter that its user chooses.

    Args:
        model: the model to train, before training.
        objectives: f1 and f2 with their targets.
        value: value of the knob; by default ``default``. A method without a knob ignores it.

    Raises:
        UserError: there is neither a value nor a default, or the method is not defined for the model's family.

    Attributes:
        name: name on the command line.
        knob: what the knob is: ``"weight"``, ``"tau"``, ``"epsilon"``, or None if there is none.
        default: default value of the knob; None if the user must give one.
        grid: values of the knob in the order of a sweep, from least to most forgotten; empty if there is no knob, or if
            its values depend on the model, as ε does.
        most: the largest meaningful value of the knob.
        gain: factor on the step sizes of the multiplier if the knob is ε; see :meth:`scaled`.
        value: current value of the knob. :func:`train` changes it between steps, so do not store results that depend on
            it.
        needs_pictures: whether D must be able to decode any latents into images in one pass.
    """

    name: ClassVar[str]
    knob: ClassVar[str | None] = "weight"
    default: ClassVar[float | None] = None
    grid: ClassVar[tuple[float, ...]] = ()
    most: ClassVar[float] = math.inf
    gain: ClassVar[float] = 1.0
    needs_pictures: ClassVar[bool] = False

    def __init__(self, model: I2IModel, objectives: Objectives, value: float | None = None) -> None:
        self.model, self.objectives = model, objectives
        self.value = self.default if value is None else value
        if self.knob is not None and self.value is None:
            raise UserError(f"{self.name} needs a value for its {self.knob}.")

    @property
    def _knob_value(self) -> float:
        """The value of the knob, for methods that have one."""
        assert self.value is not None  # the constructor checks it
        return self.value

    @classmethod
    def scaled(cls, factor: float) -> type[Method]:
        """Return this method with ``grid`` and ``gain`` multiplied by a factor, as a candidate of a search.

        Args:
            factor: above 0; without effect on a method that has no knob.
        """
        grid = tuple(min(factor * value, cls.most) for value in cls.grid)
        return type(cls.__name__, (cls,), {"grid": grid, "gain": factor * cls.gain, "__doc__": cls.__doc__})

    def forget_loss(self, encode: Encode, forget: Batch, retain: Batch) -> torch.Tensor:
        """Return the loss on the forget set, 0-d, from the encoder in training and the step's two minibatches."""
        return self.objectives.f1(encode, forget)

    def retain_loss(self, encode: Encode, retain: Batch) -> torch.Tensor:
        """Return the loss on the retain set, 0-d, from the encoder in training."""
        return self.objectives.f2(encode, retain)

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        """Return the weights of the two gradients in the step.

        They must not depend on a common factor of both gradients, such as a loss scaler's.

        Args:
            loss: loss on the forget set, 0-d.
            g1: gradient of the loss on the forget set.
            g2: gradient of the loss on the retain set.
        """
        return self._knob_value, 1.0

    def combine(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Sequence[torch.Tensor]:
        """Return the combined gradient for the optimizer; arguments as for :meth:`weights`."""
        a, b = self.weights(loss, g1, g2)
        return [a * x + b * y for x, y in zip(g1, g2, strict=True)]


def taken(parameters: Sequence[torch.nn.Parameter]) -> Gradient:
    """Return every ``p.grad``, or zeros if it is None, and set it to None."""
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradient
