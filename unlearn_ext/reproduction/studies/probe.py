"""What can be inferred from latents: whether an image is to be forgotten, and whether it was a training image."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ...errors import require
from ...models import CHUNK
from ...unlearning.batches import Side
from ...unlearning.encoder import Encoder
from ..table import UNMODIFIED
from ..trial import Trial
from .study import Answer, OnStudyStep, Part, Study

__all__ = ["COMPONENTS", "FOLDS", "MEMBER", "SET", "Probe", "Read", "accuracy"]

SET, MEMBER = "set", "member"  # the questions
FOLDS = 5
COMPONENTS = 64  # limit, since latents have more elements than there are images


@dataclass(frozen=True)
class Read(Answer):
    """Accuracy of a linear probe of one model's latents.

    Attributes:
        point: name of the model in the front, or ``"unmodified"``.
        question: ``"set"``: is a validation image to be forgotten or to be retained? ``"member"``: is an image to
            forget a training image or a held-out one?
        accuracy: share of correct answers about images that the probe was not fitted to; 0.5 is guessing.
        images: number of images of each class.
    """

    point: str
    question: str
    accuracy: float
    images: int

    @property
    def part(self) -> Part:
        """The part of the study that the row belongs to."""
        return (self.point,)

    @property
    def key(self) -> tuple[Hashable, ...]:
        """The unique key of the row."""
        return *super().key, self.question


@dataclass(frozen=True)
class Probe(Study):
    """Study with a linear probe: cross-validated logistic regression on principal components of latents E(T(x)).

    The latents are standardized, and both classes have the same number of images.
    """

    name: ClassVar[str] = "probe"
    row: ClassVar[type[Read]] = Read

    def parts(self, trial: Trial) -> Sequence[Part]:
        """Return the names of the unmodified model and of the models of the front."""
        return [(name,) for name in (UNMODIFIED, *(point.name for point in trial.points()))]

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Read]:
        """Fit a probe to the latents of one model for each question."""
        (point,) = part
        encode = Encoder(trial.model(point), trial.settings)
        training, validation = trial.problem.training, trial.problem.validation
        count = min(len(side) for side in (training.forget, validation.forget, validation.retain))
        member, unseen, retain = (
            _latents(encode, side, count) for side in (training.forget, validation.forget, validation.retain)
        )
        pairs = {SET: (unseen, retain), MEMBER: (member, unseen)}
        return [Read(trial.family, point, name, accuracy(*pair, trial.seed), count) for name, pair in pairs.items()]


def accuracy(one: np.ndarray, other: np.ndarray, seed: int) -> float:
    """Return the cross-validated accuracy of a linear probe that separates two classes; 0.5 is guessing.

    Args:
        one: latents of the first class, float32 [N, D].
        other: latents of the second class, float32 [N, D].
        seed: seed of the folds and of PCA.
    """
    require("sklearn", "report")
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    components = PCA(min(COMPONENTS, *one.shape), random_state=seed)
    probe = make_pipeline(StandardScaler(), components, LogisticRegression(max_iter=1000))
    labels = np.repeat([0, 1], [len(one), len(other)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(probe, np.concatenate([one, other]), labels, cv=folds).mean())


@torch.no_grad()
def _latents(encode: Encoder, side: Side, count: int) -> np.ndarray:
    """Return the latents of the first ``count`` images, [count, D]."""
    batches = side.batches(torch.arange(count), CHUNK)
    return torch.cat([encode(*batch.inputs).flatten(1).cpu() for batch in batches]).numpy()
