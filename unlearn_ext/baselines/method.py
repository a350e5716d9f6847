"""A method is a loss on the forget set, a loss on the retain set, and how their gradients become one step."""

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
    """The losses are f1 and f2, and the step is along value·∇f1 + ∇f2, unless a subclass says otherwise.

    Args:
        model: to be trained, as it is before.
        objectives: f1 and f2 with their targets.
        value: of the knob; the default where None, of no use to a method without a knob.

    Raises:
        UserError: neither a value nor a default, or the method is not defined for the model's family.

    Attributes:
        name: as it is typed.
        knob: the number that the method leaves its user to choose: ``"weight"``, ``"tau"``, ``"epsilon"``, or None.
        default: of the knob; None where only the user can say.
        grid: values of the knob in the order in which they are swept, from the least to the most forgotten; empty where
            there is no knob, or where they depend on the model, as ε does.
        most: the largest value of the knob that has a meaning.
        gain: factor on the step sizes of the multiplier, where the knob is ε; see :meth:`scaled`.
        value: of the knob; :func:`train` sets it between steps, so nothing may be derived from it before a step.
        needs_pictures: whether D must make a picture of any latents in one go.
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

    @classmethod
    def scaled(cls, factor: float) -> type[Method]:
        """Return this method with its ``grid`` and its ``gain`` multiplied, which is what a search can try.

        Args:
            factor: above 0. A method without a knob has neither, and stays as it is.
        """
        grid = tuple(min(factor * value, cls.most) for value in cls.grid)
        return type(cls.__name__, (cls,), {"grid": grid, "gain": factor * cls.gain, "__doc__": cls.__doc__})

    def forget_loss(self, encode: Encode, forget: Batch, retain: Batch) -> torch.Tensor:
        """0-d, of E in training over a step's two minibatches."""
        return self.objectives.f1(encode, forget)

    def retain_loss(self, encode: Encode, retain: Batch) -> torch.Tensor:
        """0-d, of E in training."""
        return self.objectives.f2(encode, retain)

    def weights(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Weights:
        """Of the two gradients in the step. They are the same for both multiplied by a number, as a loss scaler does.

        Args:
            loss: on the forget set, 0-d.
            g1: its gradient.
            g2: of the loss on the retain set.
        """
        return self.value, 1.0

    def combine(self, loss: torch.Tensor, g1: Gradient, g2: Gradient) -> Sequence[torch.Tensor]:
        """The one gradient that the optimizer is given; arguments as for :meth:`weights`."""
        a, b = self.weights(loss, g1, g2)
        return [a * x + b * y for x, y in zip(g1, g2, strict=True)]


def taken(parameters: Sequence[torch.nn.Parameter]) -> Gradient:
    """Every ``p.grad``, zeros where there is none; leaves none."""
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradient
