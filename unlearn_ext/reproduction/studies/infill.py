"""What fills the hole when f1 is the distance from something else than the latents of noise."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...models import CHUNK, I2IModel
from ...tasks import Task
from ...unlearning.batches import Side, pixels
from ...unlearning.encoder import Encoder
from ...unlearning.history import History
from ...unlearning.objectives import Encode, Objectives
from ...unlearning.trainer import Trainer
from ..problem import Problem
from ..table import UNMODIFIED
from ..trial import Trial
from .readers import hole_error
from .study import Answer, OnStudyStep, Part, Study, of_run

__all__ = [
    "BLUR",
    "BLURRED",
    "MEAN_IMAGE",
    "NOISE",
    "RETAIN_MEAN",
    "TARGETS",
    "WHOLE",
    "Infill",
    "Infilled",
    "aimed",
    "blurred",
]

NOISE, MEAN_IMAGE, BLURRED, RETAIN_MEAN = TARGETS = ("noise", "mean image", "blurred", "retain mean")
BLUR = 4.0  # pixels, the Gaussian's standard deviation: an eighth of the side of the built-in images
WHOLE = 1.0  # share of f1 that the unmodified model has


@dataclass(frozen=True)
class Infilled(Answer):
    """One model.

    Attributes:
        target: that f1 is the distance from: ``"noise"``, the mean latent of noise; ``"mean image"``, the latents of
            the mean image to retain; ``"blurred"``, those of each image to forget, blurred; ``"retain mean"``, the mean
            of the latents of images to retain. E0 has seen all but noise under the task.
        share: ε, as a share of the unmodified model's f1; 1 for that model itself.
        f1: forget objective with this target, over all training images, in variances of the frozen latents.
        f2: retain objective, likewise.
        f1_validation: forget objective over validation images.
        f2_validation: retain objective, likewise.
        error_forget: mean squared error in the hole, of pixels in [-1, 1], over validation images to forget.
        error_retain: over those to retain, likewise.
    """

    target: str
    share: float
    f1: float
    f2: float
    f1_validation: float
    f2_validation: float
    error_forget: float
    error_retain: float

    @property
    def part(self) -> Part:
        return (self.target,)

    @property
    def key(self) -> Hashable:
        return *super().key, self.share

    @property
    def pictures(self) -> tuple[str, str]:
        """Method and point that what the model makes is kept under."""
        return (UNMODIFIED, "") if self.share == WHOLE else (f"{Infill.name} {self.target}", f"{self.share:g}")


@dataclass(frozen=True)
class Infill(Study):
    """From the unmodified model to one ε after another, for every target.

    Attributes:
        shares: ε, as shares of the unmodified model's f1, falling.
        families: those that are asked: not where the frozen encoder makes targets anew for each minibatch.
    """

    name: ClassVar[str] = "infill"
    row: ClassVar[type[Infilled]] = Infilled
    shares: tuple[float, ...]
    families: tuple[str, ...] = ("vqgan", "autoencoder", "mae")

    def parts(self, trial: Trial) -> Sequence[Part]:
        return [(target,) for target in TARGETS] if trial.family in self.families else []

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Infilled]:
        (target,) = part
        training, validation = aimed(trial.problem, target)
        rows = []
        for share, model in self._models(trial, training, on_step):
            encode = Encoder(model, trial.settings)
            values = (*training.evaluate(encode), *validation.evaluate(encode))
            errors = (hole_error(model, side.images, trial.task) for side in (validation.forget, validation.retain))
            row = Infilled(trial.family, target, share, *values, *errors)
            if share != WHOLE:
                trial.pictures.keep(*row.pictures, model, trial.problem.images, trial.task)
            rows.append(row)
        return rows

    def _models(
        self, trial: Trial, training: Objectives, on_step: OnStudyStep | None
    ) -> Iterator[tuple[float, I2IModel]]:
        """The unmodified model, and one that is trained on whenever the next is asked for."""
        yield WHOLE, trial.problem.model
        whole, model = training.evaluate_f1(training.frozen), copy.deepcopy(trial.problem.model)
        run = Trainer(model, training, History(), of_run(on_step))
        for share in self.shares:
            run.approach(share * whole)
            yield share, model


def aimed(problem: Problem, target: str) -> tuple[Objectives, Objectives]:
    """Training and validation objectives with another target of f1, in the units that they have.

    Args:
        problem: whose objectives, with targets computed once and kept.
        target: one of ``TARGETS``.
    """
    if target == NOISE:
        return problem.training, problem.validation
    return tuple(
        replace(
            objectives,
            forget=replace(objectives.forget, targets=_targets(problem.training, objectives.forget, target)),
            spread=torch.zeros_like(objectives.spread),
        )
        for objectives in (problem.training, problem.validation)
    )


def _targets(training: Objectives, forget: Side, target: str) -> torch.Tensor:
    """[N, ...] of a side, or [1, ...]: one for all."""
    if target == RETAIN_MEAN:
        return training.retain.targets.mean(0, keepdim=True)
    if target == MEAN_IMAGE:
        images = pixels(training.retain.images).mean(0, keepdim=True)
    else:
        images = blurred(pixels(forget.images), forget.task)
    return _latents(training.frozen, replace(forget, images=images, augment=None, targets=None))


@torch.no_grad()
def _latents(encode: Encode, side: Side) -> torch.Tensor:
    batches = side.batches(torch.arange(len(side)), CHUNK)
    return torch.cat([encode(*batch.inputs).cpu() for batch in batches])


def blurred(images: torch.Tensor, task: Task) -> torch.Tensor:
    """Images float [N, C, H, W] in [-1, 1], of which only what the task leaves is blurred: of what it hides, nothing
    comes out of the hole, and beyond the edges there is nothing.
    """
    seen = (~task.mask(images)).float()
    down, across = map(_gaussian, images.shape[-2:])
    return (down @ task(images) @ across) / (down @ seen @ across)  # T fills the hole with 0


def _gaussian(side: int) -> torch.Tensor:
    """[side, side], how much of each place comes to each, not normalised."""
    place = torch.arange(side)
    return ((place[:, None] - place) / BLUR).square().div(-2).exp()
