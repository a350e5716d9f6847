"""Measure f1, f2 and the worst image of models as a run did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import tasks
from ..data import augment
from ..models import I2IModel
from ..unlearning.encoder import Encoder
from ..unlearning.objectives import Objectives
from ..unlearning.settings import Settings

__all__ = ["Measured", "Meter", "Sets"]


@dataclass(frozen=True)
class Sets:
    """The training images, in the order of training; None for a set of which an image is not at hand.

    Attributes:
        forget: images of each request, uint8 [N, C, H, W].
        retain: images to retain, uint8 [M, C, H, W].
    """

    forget: Mapping[str, torch.Tensor | None]
    retain: torch.Tensor | None


@dataclass(frozen=True)
class Measured:
    """Values of one model.

    Attributes:
        f1: f1 of each request whose images are at hand.
        worst_f1: the largest f1 of a single image of each of these requests.
        f2: f2.
    """

    f1: Mapping[str, float]
    worst_f1: Mapping[str, float]
    f2: float


class Meter:
    """Measures models as the run did.

    Args:
        before: the model before unlearning.
        retain: training images to retain, uint8 [M, C, H, W].
        forget: training images of each request, uint8 [N, C, H, W]; None if they are not at hand.
        command: section ``command`` of the evidence.
        augmentations: names of the augmentations of the run.
    """

    def __init__(
        self,
        before: I2IModel,
        retain: torch.Tensor,
        forget: Mapping[str, torch.Tensor | None],
        command: Mapping[str, Any],
        augmentations: Sequence[str],
    ) -> None:
        task, settings = tasks.parse(str(command["task"])), Settings(**command["settings"])
        augmented, unit = augment.parse(list(augmentations)), command["variance"]

        def frozen(images: torch.Tensor) -> Objectives:
            objectives = Objectives.freeze(before, images, retain, task, augment=augmented, settings=settings)
            # A run that continues another one keeps its units, although the images to retain may be others.
            return replace(objectives, variance=torch.full_like(objectives.variance, unit)) if unit else objectives

        self._settings = settings
        self._objectives = {request: frozen(images) for request, images in forget.items() if images is not None}
        # f2 does not depend on the images to forget: where they are destroyed, any image serves to freeze it.
        self._f2 = next(iter(self._objectives.values()), None) or frozen(retain[:1])

    def unmodified(self) -> dict[str, float]:
        """Return f1 of the model before for each request."""
        return {name: objectives.evaluate_f1(objectives.frozen) for name, objectives in self._objectives.items()}

    def measure(self, model: I2IModel) -> Measured:
        """Return the values of a model."""
        encode = Encoder(model, self._settings)
        f1 = {name: objectives.evaluate_f1(encode) for name, objectives in self._objectives.items()}
        worst = {name: objectives.per_image(encode).max().item() for name, objectives in self._objectives.items()}
        return Measured(f1, worst, self._f2.evaluate_f2(encode))
