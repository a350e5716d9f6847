"""What a stranger can read from the latents: which set an image is of, and whether it was trained on."""

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
COMPONENTS = 64  # at most: latents have more elements than there are images


@dataclass(frozen=True)
class Read(Answer):
    """How often a linear probe of one model's latents is right.

    Attributes:
        point: of the front, or ``"unmodified"``.
        question: ``"set"``: is a validation image one to forget, or to retain? ``"member"``: was an image to forget
            trained on, or held out?
        accuracy: share of right answers about images that the probe was not fitted to; 0.5 is blind.
        images: of either kind.
    """

    point: str
    question: str
    accuracy: float
    images: int

    @property
    def part(self) -> Part:
        return (self.point,)

    @property
    def key(self) -> Hashable:
        return *super().key, self.question


@dataclass(frozen=True)
class Probe(Study):
    """A logistic regression on the principal components of standardised latents E(T(x)), cross-validated, with as many
    images of either kind.
    """

    name: ClassVar[str] = "probe"
    row: ClassVar[type[Read]] = Read

    def parts(self, trial: Trial) -> Sequence[Part]:
        return [(name,) for name in (UNMODIFIED, *(point.name for point in trial.points()))]

    def answer(self, trial: Trial, part: Part, on_step: OnStudyStep | None) -> list[Read]:
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
    """Of a linear probe that tells two kinds apart, float32 [N, D] each, cross-validated; 0.5 is blind.

    Args:
        one: latents of a kind.
        other: as many of another.
        seed: of the folds.
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
    """Of the first images of a side, [count, D]."""
    batches = side.batches(torch.arange(count), CHUNK)
    return torch.cat([encode(*batch.inputs).flatten(1).cpu() for batch in batches]).numpy()
