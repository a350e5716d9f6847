"""Evaluate the models of a finished run on validation or training images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path

import torch

from .._utils.atomic_io import write_table
from ..data import ForgetRetain
from ..errors import UserError
from ..models import I2IModel, load_like, reconstruct
from ..tasks import Task
from ..unlearning.batches import pixels
from ..unlearning.pareto import ParetoFront
from .extractors import Extractor
from .features import compare, extract, left_out
from .hole import hole_values

__all__ = ["FLOOR", "PARTS", "TRAINING", "UNMODIFIED", "VALIDATION", "Judge", "MetricsRow", "evaluate"]

MetricsRow = dict[str, str | int | float]

FLOOR, UNMODIFIED = "real images", "unmodified"
PARTS = VALIDATION, TRAINING = "validation", "training"


def evaluate(
    run: str | PathLike[str],
    unmodified: I2IModel,
    images: ForgetRetain,
    *,
    task: Task,
    extractors: Sequence[Extractor],
    part: str = VALIDATION,
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[MetricsRow]:
    """Evaluate every model of a run on its images, separately for those to forget and those to retain.

    Warns before the work if there are too few images for FID, KID and IS, which are then left out.

    Args:
        run: folder that a run or a sweep wrote; ``metrics.csv`` is written into it.
        unmodified: the model that the run started from.
        images: the images of the run.
        task: the task T.
        extractors: see :func:`unlearn_ext.metrics.extractors.load_extractor`.
        part: ``"validation"`` for the images that were held out, or ``"training"`` for those that were trained on.
        limit: maximum number of images per set; the first images of each set are used. If there are enough for FID, it
            is the same number in both sets, because the number biases FID.
        progress: called with the name of each model before it is evaluated.

    Returns:
        The rows of ``metrics.csv``, two per model: ``model``, ``set`` (``"forget"`` or ``"retain"``), ``part``,
        ``images`` (their number), the values of :func:`~unlearn_ext.metrics.features.compare`, and those of
        :func:`~unlearn_ext.metrics.hole.hole_values`, averaged over the images. The first "model" is the real images:
        the values of a perfect model.

    Raises:
        UserError: the folder has no front, one of its models cannot be loaded, or there are no images in this part.
    """
    sets = {kind: pixels(side) for kind, side in _sides(images, part, limit).items()}
    too_few = left_out(min(map(len, sets.values())))
    if too_few:
        warnings.warn(too_few, stacklevel=2)
    judges = {kind: Judge(side, task, extractors, only_pairs=bool(too_few)) for kind, side in sets.items()}
    rows: list[MetricsRow] = []
    for name, model in _models(Path(run), unmodified):
        if progress is not None:
            progress(name)
        for kind, originals in sets.items():
            made = originals if model is None else reconstruct(model, originals, task)
            rows.append({"model": name, "set": kind, "part": part, "images": len(originals), **judges[kind](made)})
    write_table(Path(run) / "metrics.csv", list(rows[0]), (row.values() for row in rows))
    return rows


def _sides(images: ForgetRetain, part: str, limit: int | None) -> dict[str, torch.Tensor]:
    """Return the images to evaluate: equally many of both sets, unless there are too few for FID anyway."""
    if part not in PARTS:
        raise UserError(f"there is no part `{part}` of the images; there are {' and '.join(PARTS)}.")
    sides = {"forget": images.forget, "retain": images.retain}
    if part == VALIDATION:
        sides = {"forget": images.forget_validation, "retain": images.retain_validation}
    for kind, side in sides.items():
        if not len(side):
            raise UserError(
                f"there are no {part} images to {kind}: evaluate the training images, with --part training (in Python, "
                'part="training").'
            )
    sides = {kind: side[:limit] for kind, side in sides.items()}
    count = min(map(len, sides.values()))
    return sides if left_out(count) else {kind: side[:count] for kind, side in sides.items()}


class Judge:
    """The metrics of images generated from fixed originals, whose features are computed once.

    Args:
        originals: float32 [N, C, H, W] in [-1, 1].
        task: the task T.
        extractors: the feature extractors.
        only_pairs: leave out the measures that compare sets, as with too few images for them.

    Raises:
        UserError: an extra is missing.
    """

    def __init__(
        self, originals: torch.Tensor, task: Task, extractors: Sequence[Extractor], *, only_pairs: bool = False
    ) -> None:
        self.originals, self.task, self.extractors, self.only_pairs = originals, task, extractors, only_pairs
        self.features = [extract(extractor, originals) for extractor in extractors]

    def __call__(self, made: torch.Tensor) -> dict[str, float]:
        """Return all metrics of images generated from the originals, in the same order; pair metrics are averaged."""
        pairs = hole_values(self.originals, made, self.task, self.extractors)
        values = {name: value.mean().item() for name, value in pairs.items()}
        for extractor, features in zip(self.extractors, self.features, strict=True):
            values |= compare(features, extract(extractor, made), extractor, only_pairs=self.only_pairs)
        return values


def _models(run: Path, unmodified: I2IModel) -> Iterator[tuple[str, I2IModel | None]]:
    yield FLOOR, None
    yield UNMODIFIED, unmodified
    for point in ParetoFront.from_csv(run / "front.csv"):
        yield point.name, load_like(unmodified, run / point.name)
