"""Canaries: does the model know images that were trained on better than look-alikes that were not?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from ..data.decode import decode
from ..data.folders import find_images
from ..errors import UserError
from ..models import I2IModel
from .context import Canaries, Context
from .estimates import mean
from .protocol import Audit, Finding, NotRun
from .reading import hole_errors

__all__ = ["CANARIES", "INSIDE", "OUTSIDE", "exposures", "read_canaries"]

INSIDE, OUTSIDE = "in", "out"  # sub-folders: in the training set, and not in it


def read_canaries(folder: str | PathLike[str], model: I2IModel) -> Canaries:
    """Read the canaries in ``folder/in`` and their look-alikes in ``folder/out``, at the model's size.

    Raises:
        UserError: a folder is missing or has no image, an image cannot be read, or an image is in both.
    """
    inside, outside = (_read(Path(folder).expanduser() / name, model) for name in (INSIDE, OUTSIDE))
    if set(map(_key, inside)) & set(map(_key, outside)):
        raise UserError(f"an image in {folder} is in `{INSIDE}` and in `{OUTSIDE}`: keep it where it belongs.")
    return Canaries(inside, outside)


def exposures(errors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the exposure of each canary in bits: log2(1 + M) − log2(rank among itself and the M look-alikes).

    Args:
        errors: errors of the canaries, [N].
        others: errors of the look-alikes, [M].
    """
    ranks = 1 + (others < errors[:, None]).sum(1) + (others == errors[:, None]).sum(1) / 2
    return math.log2(len(others) + 1) - np.log2(ranks)


def _findings(context: Context) -> Iterator[Finding]:
    if context.canaries is None:
        raise NotRun("no canaries were given (--canaries)")
    context.need_pictures()
    errors, others = (
        hole_errors(context.model, images, context.task)
        for images in (context.canaries.inside, context.canaries.outside)
    )
    ranks = np.arange(1, len(others) + 2)
    blind = math.log2(len(ranks)) - np.log2(ranks).mean()
    more = f"look-alikes: {len(others)}, so at most {math.log2(len(ranks)):.3g} bits"
    yield Finding.of("mean exposure in bits", [mean(exposures(errors, others))], chance=float(blind), more=more)


def _read(folder: Path, model: I2IModel) -> torch.Tensor:
    """Return the images of a folder, uint8 [N, C, S, S]."""
    files = find_images(folder) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"there are no images in {folder}: give a folder with `{INSIDE}`, images known to be in the training set, "
            f"and `{OUTSIDE}`, look-alikes that were not."
        )
    return torch.stack([_pixels(file, model) for file in files])


def _pixels(file: Path, model: I2IModel) -> torch.Tensor:
    try:
        return torch.from_numpy(decode(file, model.size, model.channels).pixels)
    except Exception as error:  # decoders raise many types on broken input
        raise UserError(f"the canary {file} cannot be read: {error}") from error


def _key(image: torch.Tensor) -> bytes:
    return image.numpy().tobytes()


CANARIES = Audit(
    "canaries",
    "Images known to have been trained on are ranked by their error among look-alikes that were not (Carlini et al. "
    "2019). An exposure above chance means that the model knows them better. It needs canaries from before the "
    "training; without them it cannot be done.",
    _findings,
)
