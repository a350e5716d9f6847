"""The pictures that a run saves: a few images, and what its models make of them, as far as the user allows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..errors import UserError
from ..models import I2IModel, reconstruct
from ..tasks import Corruption
from .batches import in_bytes, pixels

__all__ = [
    "ALL", "BLURRED", "CHOICES", "IS_FORGET", "NONE", "RETAIN",
    "Pictures", "allowed", "blurred", "check_choice", "lower",
]  # fmt: skip

NONE, RETAIN, BLURRED, ALL = "none", "retain", "blurred", "all"
CHOICES = (NONE, RETAIN, BLURRED, ALL)  # each shows more than the one before
IS_FORGET = "is_forget"  # name of the array that says which images are to be forgotten
_SQUARES = 8  # per side of a blurred picture


class Pictures:
    """Some images to forget and to retain, and what models make of them.

    Args:
        forget: images to forget, uint8 [N, C, H, W], or float in [-1, 1].
        retain: images to retain, likewise.
        task: the task T.
        choice: one of ``CHOICES``; the object never holds more in ``samples``, and nothing else of it is saved.

    Attributes:
        samples: ``"is_forget"`` (bool [N]), and pictures by name, uint8 [N, C, H, W].
    """

    def __init__(self, forget: torch.Tensor, retain: torch.Tensor, task: Corruption, choice: str) -> None:
        self._images, self._task, self._choice = torch.cat([pixels(forget), pixels(retain)]), task, choice
        self._is_forget = np.repeat([True, False], [len(forget), len(retain)])
        self.samples = self._allowed({"original": self._images, "corrupted": task(self._images)})

    def made_by(self, model: I2IModel) -> torch.Tensor:
        """Return what a model makes of the images, uint8, as far as the choice allows."""
        made = self._allowed({"made": reconstruct(model, self._images, self._task)})
        return torch.from_numpy(made["made"])

    def add(self, name: str, made: torch.Tensor) -> None:
        """Add pictures that :meth:`made_by` returned."""
        self.samples[name] = made.numpy()

    def _allowed(self, images: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        arrays = {name: in_bytes(part).cpu().numpy() for name, part in images.items()}
        return allowed({IS_FORGET: self._is_forget, **arrays}, self._choice)


def allowed(samples: Mapping[str, np.ndarray], choice: str) -> dict[str, np.ndarray]:
    """Return the part of some pictures that a choice allows.

    What a model makes of an image to forget is treated as the image itself: before unlearning, it is a picture of the
    same person.

    Args:
        samples: ``"is_forget"`` (bool [N]), and pictures by name, uint8 [N, C, H, W].
        choice: ``"none"``, ``"retain"`` (no pictures to forget), ``"blurred"`` (those are blurred) or ``"all"``.

    Raises:
        UserError: the choice is unknown.
    """
    check_choice(choice)
    is_forget = samples[IS_FORGET].astype(bool)
    if choice in (NONE, RETAIN):
        kept = ~is_forget & (choice == RETAIN)
        return {name: array[kept] for name, array in samples.items()}
    if choice == BLURRED:
        pictures = {name: array for name, array in samples.items() if name != IS_FORGET}
        return {IS_FORGET: is_forget, **{name: _blurred_where(is_forget, part) for name, part in pictures.items()}}
    return dict(samples)


def blurred(pictures: np.ndarray) -> np.ndarray:
    """Replace squares of an eighth of the height and width by their mean; at most 8 × 8 colours are left of a picture.

    Args:
        pictures: uint8 [N, C, H, W].
    """
    means = pictures.astype(np.float64)
    for axis in (2, 3):
        size = pictures.shape[axis]
        starts = np.arange(0, size, -(-size // _SQUARES))
        lengths = np.diff(starts, append=size)
        along = np.expand_dims(lengths, [other for other in range(4) if other != axis])
        means = np.repeat(np.add.reduceat(means, starts, axis) / along, lengths, axis)
    return means.round().astype(np.uint8)


def lower(first: str, second: str) -> str:
    """Return the choice that shows less."""
    return min(first, second, key=CHOICES.index)


def check_choice(choice: str) -> None:
    """Raise ``UserError`` if there is no such choice."""
    if choice not in CHOICES:
        raise UserError(f"there is no choice of pictures `{choice}`; known: {', '.join(CHOICES)}.")


def _blurred_where(is_forget: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    shown = pictures.copy()
    shown[is_forget] = blurred(pictures[is_forget])
    return shown
