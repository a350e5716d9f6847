"""The Pareto front for different sizes of the hidden area."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...tasks import CenterCrop
from ..table import UNMODIFIED
from ..trial import Trial
from .study import Answer, OnStudyStep, Part, Study

__all__ = ["Crop", "Crops"]


@dataclass(frozen=True)
class Crop(Answer):
    """One model of the front for one size of the hidden area.

    Attributes:
        fraction: hidden fraction of each side.
        point: name of the model in the front, or ``"unmodified"``.
        epsilon: ε; NaN for the unmodified model.
        f1: forget objective over all training images, in variances of this task's frozen latents.
        f2: retain objective over all training images, in the same unit.
        f1_validation: forget objective over validation images.
        f2_validation: retain objective over validation images.
    """

    fraction: float
    point: str
    epsilon: float
    f1: float
    f2: float
    f1_validation: float
    f2_validation: float

    @property
    def part(self) -> Part:
        """The part of the study that the row belongs to."""
        return (self.fraction,)

    @property
    def key(self) -> tuple[Hashable, ...]:
        """The unique key of the row."""
        return *super().key, self.point


@dataclass(frozen=True)
class Crops(Study):
    """Study of the size of the hidden area: for each size, a small model is pretrained and its front computed.

    Attributes:
        fractions: fractions of each side that ``CenterCrop`` hides.
        points: number of ε between the boundaries.
        families: families that the study covers.
    """

    name: ClassVar[str] = "crops"
    row: ClassVar[type[Crop]] = Crop
    fractions: tuple[float, ...]
    points: int
    families: tuple[str, ...] = ("vqgan",)

    def parts(self, trial: Trial) -> Sequence[Part]:
        """Return the hidden fractions; empty for a family that the study does not cover."""
        return [(fraction,) for fraction in self.fractions] if trial.family in self.families else []

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Crop]:
        """Compute the front for one hidden fraction."""
        (fraction,) = part
        under = trial.under(CenterCrop(fraction), self.points)
        points, problem = under.sweep(), under.problem
        sides = (problem.training, problem.validation)
        unmodified = [value for side in sides for value in side.evaluate(side.frozen)]
        return [
            Crop(trial.family, fraction, UNMODIFIED, math.nan, *unmodified),
            *(
                Crop(trial.family, fraction, p.name, p.epsilon, *p.values, p.f1_validation, p.f2_validation)
                for p in points
            ),
        ]
