"""A finished run, judged: what every model of the front makes of images that none was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path

import torch

from .._utils.atomic_io import write_table
from ..data import ForgetRetain
from ..models import I2IModel, load, reconstruct
from ..tasks import Task
from ..unlearning.batches import pixels
from ..unlearning.pareto import ParetoFront
from .extractors import Extractor
from .features import compare, extract
from .hole import hole_values

__all__ = ["FLOOR", "UNMODIFIED", "Judge", "MetricsRow", "evaluate"]

MetricsRow = dict[str, str | int | float]

FLOOR, UNMODIFIED = "real images", "unmodified"


def evaluate(
    run: str | PathLike[str],
    unmodified: I2IModel,
    images: ForgetRetain,
    *,
    task: Task,
    extractors: Sequence[Extractor],
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[MetricsRow]:
    """Judge every model of a run on the validation images, those to forget and those to retain apart.

    Args:
        run: folder that a sweep wrote; ``metrics.csv`` is written into it.
        unmodified: the model that the run began with.
        images: those of the run; the validation parts are used.
        task: T.
        extractors: see :func:`unlearn_ext.metrics.extractors.load_extractor`.
        limit: of the images of each kind. The first are taken; of both kinds as many, since the count biases FID.
        progress: called with the name of each model before it is judged.

    Returns:
        The rows of ``metrics.csv``, two a model: ``model``, ``set`` (``"forget"`` or ``"retain"``), ``images``, how
        many, and the numbers of :func:`~unlearn_ext.metrics.features.compare` and, averaged over images,
        :func:`~unlearn_ext.metrics.hole.hole_values`. The first model is the real images themselves: what a perfect
        one would get.

    Raises:
        UserError: no front in the folder, a model of it cannot be loaded, or too few images.
    """
    count = min(len(images.forget_validation), len(images.retain_validation))
    count = count if limit is None else min(count, limit)
    sets = {"forget": pixels(images.forget_validation[:count]), "retain": pixels(images.retain_validation[:count])}
    judges = {kind: Judge(originals, task, extractors) for kind, originals in sets.items()}
    rows = []
    for name, model in _models(Path(run), unmodified):
        if progress is not None:
            progress(name)
        for kind, originals in sets.items():
            made = originals if model is None else reconstruct(model, originals, task)
            rows.append({"model": name, "set": kind, "images": count, **judges[kind](made)})
    write_table(Path(run) / "metrics.csv", list(rows[0]), (row.values() for row in rows))
    return rows


class Judge:
    """Holds originals, and says how near to them something made of them comes.

    Args:
        originals: float32 [N, C, H, W] in [-1, 1].
        task: T.
        extractors: that look at them.

    Raises:
        UserError: too few images, or a missing extra.
    """

    def __init__(self, originals: torch.Tensor, task: Task, extractors: Sequence[Extractor]) -> None:
        self.originals, self.task, self.extractors = originals, task, extractors
        self.features = [extract(extractor, originals) for extractor in extractors]

    def __call__(self, made: torch.Tensor) -> dict[str, float]:
        """All numbers of images made of the originals, in their order; a number of pairs is the mean over them."""
        pairs = hole_values(self.originals, made, self.task, self.extractors)
        values = {name: value.mean().item() for name, value in pairs.items()}
        for extractor, features in zip(self.extractors, self.features, strict=True):
            values |= compare(features, extract(extractor, made), extractor)
        return values


def _models(run: Path, unmodified: I2IModel) -> Iterator[tuple[str, I2IModel | None]]:
    yield FLOOR, None
    yield UNMODIFIED, unmodified
    for point in ParetoFront.from_csv(run / "front.csv"):
        yield point.name, load(unmodified.family, run / point.name)
