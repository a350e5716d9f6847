"""How well models fill in the hole of some images: before unlearning, and for every model of a sweep."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .._utils import distributed
from .._utils.atomic_io import write_table
from ..errors import UserError
from ..models import I2IModel, load_like, reconstruct
from ..models.sharding import Sharded, placed_like
from ..tasks import Task
from .batches import pixels
from .dial import UNMODIFIED
from .hole import hole_of, psnr_in_hole
from .pareto import ParetoFront

__all__ = ["CLEAR", "HOLE", "Ability", "ability", "read_hole", "write_hole"]

HOLE = "hole.csv"
_COLUMNS = ("point", "psnr", "images")
CLEAR = 1.0  # dB above the fill, a fifth less squared error
MOST = 64  # images
SECONDS = 5.0


@dataclass(frozen=True)
class Ability:
    """How well a model fills in the hole of some images.

    Attributes:
        psnr: PSNR over the hole in dB, the mean over the images.
        fill: the same, if the hole is filled with the mean colour of these holes, the best single colour.
        images: number of images.
    """

    psnr: float
    fill: float
    images: int

    @property
    def is_clear(self) -> bool:
        """Whether the model is better than one colour by at least ``CLEAR``."""
        return self.psnr >= self.fill + CLEAR


def ability(model: I2IModel, images: torch.Tensor, task: Task, seconds: float = SECONDS) -> Ability:
    """Measure how well a model fills in the hole of the first images of a set.

    There are at most ``MOST`` images, and fewer if they would take too long: the number doubles until the time is up.

    Args:
        model: a model of any family.
        images: uint8 [N, C, H, W], or float32 in [-1, 1]; at least one.
        task: the task T.
        seconds: time after which no more images are begun.
    """
    images, made, start = pixels(images[:MOST]), list[torch.Tensor](), time.monotonic()
    taken, more = 0, 1
    while taken < len(images):
        made.append(reconstruct(model, images[taken : taken + more], task))
        taken, more = taken + len(made[-1]), 2 * more
        spent = time.monotonic() - start
        late = spent + more * spent / taken > seconds
        if distributed.any_says(late) if isinstance(model, Sharded) else late:
            break
    images = images[:taken]
    filled = hole_of(images, task) * _mean_colour(images, task)
    both = (torch.cat(made), filled.expand_as(images))
    psnr, fill = (psnr_in_hole(images, other, task).clamp(max=100).mean().item() for other in both)
    return Ability(psnr, fill, taken)


def write_hole(
    run: Path, unmodified: I2IModel, images: torch.Tensor, task: Task, progress: Callable[[str], None] | None = None
) -> None:
    """Write ``hole.csv``: the PSNR in the hole of the unmodified model and of every model of a sweep.

    If the unmodified model is sharded, every process must call it, and the first one writes.

    Args:
        run: folder of the finished sweep.
        unmodified: the model that the sweep started from.
        images: images to forget, uint8 [N, C, H, W], or float32 in [-1, 1].
        task: the task T.
        progress: called with the name of each model before it is measured.

    Raises:
        UserError: a model cannot be loaded, or the file cannot be written.
    """
    before = ability(unmodified, images, task)
    rows, images = [(UNMODIFIED, before.psnr, before.images)], images[: before.images]
    for point in ParetoFront.from_csv(run / "front.csv"):
        if progress is not None:
            progress(point.name)
        model = placed_like(load_like(unmodified, run / point.name), unmodified)
        after = ability(model, images, task, seconds=math.inf)  # on the same images, or they could not be compared
        rows.append((point.name, after.psnr, after.images))
    if distributed.is_first():
        write_table(run / HOLE, _COLUMNS, rows)


def read_hole(run: Path) -> dict[str, float]:
    """Return the PSNR in dB by the name of the model; an empty dict if the run has no ``hole.csv``.

    Raises:
        UserError: the file cannot be read.
    """
    path = run / HOLE
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["point"]: float(row["psnr"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}.") from error


def _mean_colour(images: torch.Tensor, task: Task) -> torch.Tensor:
    """Return the mean colour of the holes of images [N, C, H, W], [1, C, 1, 1]."""
    hole = hole_of(images, task)
    return ((images * hole).sum((0, 2, 3)) / hole.sum()).view(1, -1, 1, 1)
