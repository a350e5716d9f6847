"""The front where less or more of the picture is hidden."""

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
    """One model of the front under one task.

    Attributes:
        fraction: of a side that is hidden.
        point: of the front, or ``"unmodified"``.
        epsilon: ε; NaN of the latter.
        f1: forget objective over all training images, in variances of this task's frozen latents.
        f2: retain objective, likewise.
        f1_validation: forget objective over validation images.
        f2_validation: retain objective, likewise.
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
        return (self.fraction,)

    @property
    def key(self) -> Hashable:
        return *super().key, self.point


@dataclass(frozen=True)
class Crops(Study):
    """For each size of the hole, a small model that was trained to fill it, and its front.

    Attributes:
        fractions: of a side that ``CenterCrop`` hides.
        points: ε between the boundaries.
        families: those that are asked.
    """

    name: ClassVar[str] = "crops"
    row: ClassVar[type[Crop]] = Crop
    fractions: tuple[float, ...]
    points: int
    families: tuple[str, ...] = ("vqgan",)

    def parts(self, trial: Trial) -> Sequence[Part]:
        return [(fraction,) for fraction in self.fractions] if trial.family in self.families else []

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Crop]:
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
