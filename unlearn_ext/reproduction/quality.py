"""Image quality of the saved reconstructions: FID, KID, IS and cosine similarity per model, in ``quality.csv``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from os import PathLike
from pathlib import Path

import torch

from .._utils.file_lock import locked
from ..demo import DATASET
from ..metrics import Extractor, load_extractor
from ..metrics.evaluation import FLOOR
from ..metrics.extractors import KNOWN
from ..metrics.features import compare, extract
from ..unlearning.batches import pixels
from .pictures import KINDS, Pictures, Sets
from .representatives import chosen
from .table import ModelRow, Table

__all__ = ["EXTRACTORS", "FILE", "Name", "Numbers", "Quality", "judge"]

FILE = "quality.csv"
# One extractor trained on photographs and, if there is one, one trained on the experiment's data set.
EXTRACTORS = ("efficientnet-lite0", *(name for name in (f"{DATASET}-cnn",) if name in KNOWN))

Name = tuple[str, str]  # method and point
Numbers = tuple[int, float, float, float, float, float]  # the last fields of Quality, in their order


@dataclass(frozen=True)
class Quality:
    """Quality of one model's reconstructions of validation images of one kind, measured with one extractor.

    Attributes:
        family: family of the model.
        seed: random seed.
        method: as in ``reproduction.csv``; ``"real images"`` for the originals themselves, a perfect model's result.
        point: as in ``reproduction.csv``.
        kind: ``"forget"`` or ``"retain"``.
        extractor: the feature extractor.
        images: number of images.
        fid: FID between halves of the images, see :func:`~unlearn_ext.metrics.features.compare`.
        kid: KID, likewise.
        kid_spread: standard deviation of KID over subsets.
        inception_score: inception score of the reconstructions; NaN if the extractor has no classes.
        cosine: mean cosine similarity of an image and its reconstruction.
    """

    family: str
    seed: int
    method: str
    point: str
    kind: str
    extractor: str
    images: int
    fid: float
    kid: float
    kid_spread: float
    inception_score: float
    cosine: float

    @property
    def group(self) -> tuple[str, int]:
        """The key by which rows are grouped."""
        return self.family, self.seed

    @property
    def key(self) -> tuple[str, int, str, str, str, str]:
        """The unique key of the row."""
        return *self.group, self.method, self.point, self.kind, self.extractor


def judge(out: str | PathLike[str], progress: Callable[[str], None] | None = None) -> list[Quality]:
    """Evaluate the saved pictures of the representative models, except those that ``quality.csv`` contains.

    Only the first seed has pictures; :func:`unlearn_ext.reproduction.representatives.chosen` selects the models.

    Args:
        out: folder of the experiment.
        progress: called with the name of each model after its evaluation.

    Returns:
        The rows of ``quality.csv``, including those of earlier calls; models without pictures have no rows.

    Raises:
        UserError: a file cannot be read, or an extra is not installed.
    """
    out, loaded = Path(out), cache(load_extractor)
    with locked(out):
        table, rows = Table(out / FILE, Quality), Table(out / "reproduction.csv", ModelRow).rows.values()
        for (family, seed), models in itertools.groupby(rows, lambda row: row.group):
            shown, names = Pictures(out, family, seed), [(FLOOR, ""), *_names(models)]
            for extractor in EXTRACTORS:
                left = [name for name in names if (family, seed, *name, KINDS[0], extractor) not in table.rows]
                for (method, point), values in _judged(shown, left, partial(loaded, extractor)):
                    table.add([Quality(family, seed, method, point, kind, extractor, *v) for kind, v in values.items()])
                    if progress is not None:
                        progress(f"{family} {method} {point}")
    return list(table.rows.values())


def _names(models: Iterable[ModelRow]) -> list[Name]:
    return [(row.method, row.point) for row in chosen(list(models)).values()]


def _judged(
    shown: Pictures, names: Iterable[Name], load: Callable[[], Extractor]
) -> Iterator[tuple[Name, dict[str, Numbers]]]:
    """Yield the numbers of every model that has pictures, for both kinds of images."""
    originals = shown.originals()
    found = {name: originals if name[0] == FLOOR else shown.made(*name) for name in names}
    models = {name: sets for name, sets in found.items() if sets is not None}
    if originals is None or not models:
        return
    extractor = load()
    real = _features(originals, extractor)
    for name, sets in models.items():
        made = _features(sets, extractor)
        yield name, {kind: _numbers(real[kind], made[kind], extractor) for kind in KINDS}


def _features(sets: Sets, extractor: Extractor) -> dict[str, torch.Tensor]:
    return {kind: extract(extractor, pixels(torch.from_numpy(images))) for kind, images in sets.items()}


def _numbers(real: torch.Tensor, made: torch.Tensor, extractor: Extractor) -> Numbers:
    """Return the number of images, then the measures in the order of the last fields of ``Quality``."""
    values = compare(real, made, extractor)
    fid, kid, kid_spread, inception_score, cosine = (
        values.get(f"{name}:{extractor.name}", math.nan) for name in ("fid", "kid", "kid-spread", "is", "cosine")
    )
    return len(real), fid, kid, kid_spread, inception_score, cosine
