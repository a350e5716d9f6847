"""Evaluate the models of a finished run on validation images."""

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
    """Evaluate every model of a run on the validation images, separately for those to forget and those to retain.

    Args:
        run: folder that a sweep wrote; ``metrics.csv`` is written into it.
        unmodified: the model that the run started from.
        images: the images of the run; the validation parts are used.
        task: the task T.
        extractors: see :func:`unlearn_ext.metrics.extractors.load_extractor`.
        limit: maximum number of images per set. The first images of each set are used, the same number in both sets,
            because the number biases FID.
        progress: called with the name of each model before it is evaluated.

    Returns:
        The rows of ``metrics.csv``, two per model: ``model``, ``set`` (``"forget"`` or ``"retain"``), ``images`` (their
        number), the values of :func:`~unlearn_ext.metrics.features.compare`, and those of
        :func:`~unlearn_ext.metrics.hole.hole_values`, averaged over the images. The first "model" is the real images:
        the values of a perfect model.

    Raises:
        UserError: the folder has no front, one of its models cannot be loaded, or there are too few images.
    """
    count = min(len(images.forget_validation), len(images.retain_validation))
    count = count if limit is None else min(count, limit)
    sets = {"forget": pixels(images.forget_validation[:count]), "retain": pixels(images.retain_validation[:count])}
    judges = {kind: Judge(originals, task, extractors) for kind, originals in sets.items()}
    rows: list[MetricsRow] = []
    for name, model in _models(Path(run), unmodified):
        if progress is not None:
            progress(name)
        for kind, originals in sets.items():
            made = originals if model is None else reconstruct(model, originals, task)
            rows.append({"model": name, "set": kind, "images": count, **judges[kind](made)})
    write_table(Path(run) / "metrics.csv", list(rows[0]), (row.values() for row in rows))
    return rows


class Judge:
    """The metrics of images generated from fixed originals, whose features are computed once.

    Args:
        originals: float32 [N, C, H, W] in [-1, 1].
        task: the task T.
        extractors: the feature extractors.

    Raises:
        UserError: there are too few images, or an extra is missing.
    """

    def __init__(self, originals: torch.Tensor, task: Task, extractors: Sequence[Extractor]) -> None:
        self.originals, self.task, self.extractors = originals, task, extractors
        self.features = [extract(extractor, originals) for extractor in extractors]

    def __call__(self, made: torch.Tensor) -> dict[str, float]:
        """Return all metrics of images generated from the originals, in the same order; pair metrics are averaged."""
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
