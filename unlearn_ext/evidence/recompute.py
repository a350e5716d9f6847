"""Compute f1, f2 and the worst image of a model again, from the models and images themselves."""

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
        files: their names.
        retain: images to retain, uint8 [M, C, H, W].
    """

    forget: Mapping[str, torch.Tensor | None]
    files: Mapping[str, Sequence[str]]
    retain: torch.Tensor | None


@dataclass(frozen=True)
class Measured:
    """Values of one model.

    Attributes:
        f1: f1 of each request whose images are at hand.
        worst: the largest f1 of a single image of each of these requests, and its file.
        f2: f2.
    """

    f1: Mapping[str, float]
    worst: Mapping[str, tuple[float, str]]
    f2: float


class Meter:
    """Measures models as the run did.

    Args:
        before: the model before unlearning.
        sets: the training images; those to retain must be at hand.
        command: section ``command`` of the evidence.
        augmentations: names of the augmentations of the run.
    """

    def __init__(self, before: I2IModel, sets: Sets, command: Mapping[str, Any], augmentations: Sequence[str]) -> None:
        assert sets.retain is not None
        task, settings = tasks.parse(str(command["task"])), Settings(**command["settings"])
        self._files, self._settings = sets.files, settings

        def frozen(forget: torch.Tensor) -> Objectives:
            augmented = augment.parse(list(augmentations))
            objectives = Objectives.freeze(before, forget, sets.retain, task, augment=augmented, settings=settings)
            # A run that continues another one keeps its units, although the images to retain may be others.
            unit = command["variance"]
            return replace(objectives, variance=torch.full_like(objectives.variance, unit)) if unit else objectives

        known = {request: images for request, images in sets.forget.items() if images is not None}
        self._objectives = {request: frozen(images) for request, images in known.items()}
        # f2 does not depend on the images to forget: where they are destroyed, any image serves to freeze it.
        self._f2 = next(iter(self._objectives.values()), None) or frozen(sets.retain[:1])

    def unmodified(self) -> dict[str, float]:
        """Return f1 of the model before for each request."""
        return {name: objectives.evaluate_f1(objectives.frozen) for name, objectives in self._objectives.items()}

    def measure(self, model: I2IModel) -> Measured:
        """Return the values of a model."""
        encode = Encoder(model, self._settings)
        f1 = {name: objectives.evaluate_f1(encode) for name, objectives in self._objectives.items()}
        worst = {name: self._worst(name, encode) for name in self._objectives}
        return Measured(f1, worst, self._f2.evaluate_f2(encode))

    @torch.no_grad()
    def _worst(self, request: str, encode: Encoder) -> tuple[float, str]:
        objectives, files = self._objectives[request], self._files[request]
        batches = objectives.forget.batches(torch.arange(len(files)), 1)
        return max((objectives.f1(encode, batch).item(), file) for batch, file in zip(batches, files, strict=True))
