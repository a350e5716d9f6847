"""What models paint in the hidden area when f1 is the distance to a target other than the latents of noise."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...audit.reading import hole_error
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
BLUR = 4.0  # standard deviation of the Gaussian in pixels: an eighth of the side of the built-in images
WHOLE = 1.0  # ``share`` of the unmodified model


@dataclass(frozen=True)
class Infilled(Answer):
    """Results of one model.

    Attributes:
        target: target of f1, computed by the frozen encoder: ``"noise"``, the mean latent of noise; ``"mean image"``,
            the latents of the mean image to retain; ``"blurred"``, the latents of each image to forget after a blur;
            ``"retain mean"``, the mean latent of images to retain. All inputs but noise are masked by the task.
        share: ε, as a share of the unmodified model's f1; 1 for the unmodified model itself.
        f1: forget objective with this target over all training images, in variances of the frozen latents.
        f2: retain objective over all training images, in the same unit.
        f1_validation: forget objective over validation images.
        f2_validation: retain objective over validation images.
        error_forget: mean squared error of the hidden pixels, in [-1, 1], over validation images to forget.
        error_retain: the same over validation images to retain.
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
        """The part of the study that the row belongs to."""
        return (self.target,)

    @property
    def key(self) -> tuple[Hashable, ...]:
        """The unique key of the row."""
        return *super().key, self.share

    @property
    def pictures(self) -> tuple[str, str]:
        """Method and point under which the model's pictures are saved."""
        return (UNMODIFIED, "") if self.share == WHOLE else (f"{Infill.name} {self.target}", f"{self.share:g}")


@dataclass(frozen=True)
class Infill(Study):
    """Study of the target of f1: for each target, a model is trained from the unmodified one to one ε after another.

    Attributes:
        shares: ε in falling order, as shares of the unmodified model's f1.
        families: families that the study covers: those whose targets are computed once, not for each minibatch.
    """

    name: ClassVar[str] = "infill"
    row: ClassVar[type[Infilled]] = Infilled
    shares: tuple[float, ...]
    families: tuple[str, ...] = ("vqgan", "autoencoder", "mae")

    def parts(self, trial: Trial) -> Sequence[Part]:
        """Return the targets; empty for a family that the study does not cover."""
        return [(target,) for target in TARGETS] if trial.family in self.families else []

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Infilled]:
        """Train to each ε with one target and evaluate the models."""
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
        """Yield the unmodified model, then one model, trained further before each yield."""
        yield WHOLE, trial.problem.model
        whole, model = training.evaluate_f1(training.frozen), copy.deepcopy(trial.problem.model)
        run = Trainer(model, training, History(), of_run(on_step))
        for share in self.shares:
            run.approach(share * whole)
            yield share, model


def aimed(problem: Problem, target: str) -> tuple[Objectives, Objectives]:
    """Return training and validation objectives with another target of f1, in unchanged units.

    Args:
        problem: problem whose objectives have cached targets.
        target: one of ``TARGETS``.
    """
    if target == NOISE:
        return problem.training, problem.validation
    training, validation = (
        replace(
            objectives,
            forget=replace(objectives.forget, targets=_targets(problem.training, objectives.forget, target)),
            spread=torch.zeros_like(objectives.spread),
        )
        for objectives in (problem.training, problem.validation)
    )
    return training, validation


def _targets(training: Objectives, forget: Side, target: str) -> torch.Tensor:
    """Return the targets of a set of images: [N, ...], or [1, ...] if all images share one."""
    if target == RETAIN_MEAN:
        assert training.retain.targets is not None  # the families of this study have cached targets
        return training.retain.targets.mean(0, keepdim=True)
    if target == MEAN_IMAGE:
        images = pixels(training.retain.images).mean(0, keepdim=True)
    else:
        assert isinstance(forget.task, Task)  # a trial's task has a mask
        images = blurred(pixels(forget.images), forget.task)
    return _latents(training.frozen, replace(forget, images=images, augment=None, targets=None))


@torch.no_grad()
def _latents(encode: Encode, side: Side) -> torch.Tensor:
    batches = side.batches(torch.arange(len(side)), CHUNK)
    return torch.cat([encode(*batch.inputs).cpu() for batch in batches])


def blurred(images: torch.Tensor, task: Task) -> torch.Tensor:
    """Blur the visible pixels of images, float [N, C, H, W] in [-1, 1].

    Hidden pixels and the outside of the image have weight 0 in the Gaussian average.
    """
    seen = (~task.mask(images)).float()
    down, across = map(_gaussian, images.shape[-2:])
    return (down @ task(images) @ across) / (down @ seen @ across)  # the task sets hidden pixels to 0


def _gaussian(side: int) -> torch.Tensor:
    """Return the matrix of Gaussian weights between pixel positions, [side, side], not normalized."""
    place = torch.arange(side)
    return ((place[:, None] - place) / BLUR).square().div(-2).exp()
