"""What an audit is given: the unmodified and the audited model, the images, the task and the objectives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ..data import ForgetRetain
from ..models import I2IModel
from ..tasks import Task
from ..unlearning.encoder import Encoder
from ..unlearning.objectives import Objectives
from ..unlearning.settings import Settings
from .estimates import Estimate, mean
from .protocol import Finding, NotRun

__all__ = ["DECODED", "ENCODED", "RETRAINED", "UNMODIFIED", "Canaries", "Context", "ImageSet", "f1_and_f2"]

UNMODIFIED, RETRAINED = "unmodified", "retrained"  # names of the models for comparison
ENCODED, DECODED = 1024, 256  # limits on the images of a set, to bound the time: for latents and for pictures
_MINIBATCHES = 10  # an interval of f1 or f2 comes from the spread between so many minibatches


@dataclass(frozen=True)
class ImageSet:
    """The images to forget or those to retain.

    Audits that fit something measure it on other images. These are held-out images if there are any, and else half of
    the training images, selected at random.

    Attributes:
        name: ``"forget"`` or ``"retain"``.
        training: images that unlearning used, uint8 [N, C, H, W], or float in [-1, 1].
        held_out: other images of the same classes, likewise; may be empty.
        seed: seed of the division into halves.
    """

    name: str
    training: torch.Tensor
    held_out: torch.Tensor
    seed: int

    @property
    def fitted(self) -> torch.Tensor:
        """The images that an audit may fit something to."""
        return self._divided[0][:ENCODED]

    @property
    def measured(self) -> torch.Tensor:
        """The images on which an audit that fits something is measured.

        Raises:
            NotRun: there is only one image.
        """
        return self._divided[1][:DECODED]

    @cached_property
    def _divided(self) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.held_out):
            return self.training, self.held_out
        if len(self.training) < 2:
            raise NotRun(f"the {self.name} set has only one image, and none is left to measure on")
        order = torch.randperm(len(self.training), generator=torch.Generator().manual_seed(self.seed))
        half = len(order) // 2
        return self.training[order[half:][:ENCODED]], self.training[order[:half][:DECODED]]


@dataclass(frozen=True)
class Canaries:
    """Images known to have been trained on, beside look-alikes that were not; uint8 [N, C, H, W] each."""

    inside: torch.Tensor
    outside: torch.Tensor


@dataclass(frozen=True)
class Context:
    """One model to audit, with everything that audits need.

    Attributes:
        point: name of the model: a point of the run, ``"unmodified"`` or ``"retrained"``.
        before: the unmodified model. Audits must not change it.
        model: the model to audit. Audits train or modify copies of it.
        forget: the images to forget.
        retain: the images to retain.
        task: the task T.
        objectives: f1 and f2 as in the run, over all its training images.
        canaries: images for the audit of the same name, if the user gave some.
    """

    point: str
    before: I2IModel
    model: I2IModel
    forget: ImageSet
    retain: ImageSet
    task: Task
    objectives: Objectives
    canaries: Canaries | None = None

    @classmethod
    def of(
        cls,
        before: I2IModel,
        images: ForgetRetain,
        task: Task,
        settings: Settings,
        *,
        variance: float | None = None,
        canaries: Canaries | None = None,
    ) -> Context:
        """Return the context of the unmodified model; ``replace(context, point=…, model=…)`` is that of another one.

        Args:
            before: the unmodified model.
            images: the images of the run; held-out images may be missing (empty tensors).
            task: the task T.
            settings: the settings of the run.
            variance: s², the unit of f1 and f2 in the run; by default that of the latents of the images to retain.
            canaries: see the class.

        Raises:
            UserError: the images cannot be used, see :meth:`unlearn_ext.unlearning.objectives.Objectives.freeze`.
        """
        objectives = Objectives.freeze(before, images.forget, images.retain, task, settings=settings)
        if variance is not None:
            objectives = replace(objectives, variance=torch.full_like(objectives.variance, variance))
        forget = ImageSet("forget", images.forget, images.forget_validation, settings.seed)
        retain = ImageSet("retain", images.retain, images.retain_validation, settings.seed)
        return cls(UNMODIFIED, before, before, forget, retain, task, objectives, canaries)

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return self.objectives.settings

    @property
    def seed(self) -> int:
        """The random seed of all audits."""
        return self.settings.seed

    @property
    def encode(self) -> Encoder:
        """The encoder of the model to audit."""
        return Encoder(self.model, self.settings)

    @property
    def has_latents_of_before(self) -> bool:
        """Whether f1 and f2 have a meaning: a model trained from scratch has other latents than the unmodified one."""
        return self.point != RETRAINED

    @property
    def draws_quickly(self) -> bool:
        """Whether pictures take one pass; families with random inputs sample them step by step, which takes minutes."""
        return not self.model.random

    def need_pictures(self) -> None:
        """Raise ``NotRun`` if pictures take minutes."""
        if not self.draws_quickly:
            raise NotRun(self._slow)

    def left_out(self) -> Iterator[Finding]:
        """Yield what is not measured for this model, with the reason."""
        if not self.has_latents_of_before:
            yield Finding.not_run("f1, f2", "a model trained apart has other latents, so the distance has no meaning")
        if not self.draws_quickly:
            yield Finding.not_run("error in the hole", self._slow)

    @property
    def _slow(self) -> str:
        return f"models of the family {self.model.family} sample pictures step by step, which takes minutes"


def f1_and_f2(objectives: Objectives, encode: Encoder) -> tuple[Estimate, Estimate]:
    """Return f1 and f2 of an encoder, each with the interval from the spread between minibatches."""
    sides = ((objectives.f1, objectives.forget), (objectives.f2, objectives.retain))
    estimates = []
    for objective, side in sides:
        size = min(math.ceil(len(side) / _MINIBATCHES), 4 * objectives.settings.batch_size)
        every = torch.arange(len(side))
        with torch.no_grad():
            pairs = [(objective(encode, batch).item(), len(batch.inputs[0])) for batch in side.batches(every, size)]
        values, counts = (np.array(column) for column in zip(*pairs, strict=True))
        estimates.append(mean(values, counts))
    return estimates[0], estimates[1]
