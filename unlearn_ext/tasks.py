"""Tasks T(x): the part of an image that is masked before the model must reconstruct it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from ._utils import draws
from .errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["TASKS", "CenterCrop", "Corruption", "Outpaint", "RandomMask", "Reconstruct", "Task", "parse"]

# Any function that corrupts images [N, C, H, W] and leaves its input as it is; every Task is one.
Corruption = Callable[[torch.Tensor], torch.Tensor]


class Task(ABC):
    """A task that hides part of an image; hidden pixels are set to 0, the middle grey of images in [-1, 1].

    Attributes:
        name: name on the command line.
        example: an example for the command line.
    """

    name: ClassVar[str]
    example: ClassVar[str]

    @abstractmethod
    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mask of images [N, C, H, W], True where hidden: bool [N, 1, H, W], or [1, 1, H, W] if shared."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, H, W] with the hidden pixels set to 0; the input is not changed."""
        return images.masked_fill(self.mask(images), 0)

    def __str__(self) -> str:
        return ":".join([self.name, *map(str, astuple(cast("DataclassInstance", self)))])  # every task is a dataclass


@dataclass(frozen=True)
class CenterCrop(Task):
    """A task that hides the centre of the image.

    Along each axis, ``round(fraction · side)`` pixels are hidden; 0.5 hides a quarter of the area.

    Attributes:
        fraction: hidden fraction of each side, in (0, 1].

    Raises:
        UserError: the fraction is outside (0, 1].
    """

    name: ClassVar[str] = "center-crop"
    example: ClassVar[str] = "center-crop:0.5"
    fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_fraction(self)

    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mask, bool [1, 1, H, W]."""
        return _middle(images, self.fraction)


@dataclass(frozen=True)
class Outpaint(Task):
    """A task that hides all but the centre of the image, the inverse of ``CenterCrop`` of the same fraction.

    Attributes:
        fraction: visible fraction of each side, in (0, 1]; 0.5 keeps a quarter of the area.

    Raises:
        UserError: the fraction is outside (0, 1].
    """

    name: ClassVar[str] = "outpaint"
    example: ClassVar[str] = "outpaint:0.5"
    fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_fraction(self)

    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mask, bool [1, 1, H, W]."""
        return ~_middle(images, self.fraction)


@dataclass(frozen=True)
class RandomMask(Task):
    """A task that hides ``round(fraction · grid²)`` random cells of a square grid, different for every image.

    The cells depend only on the seed and the image's pixels. So an image has the same mask in every batch and order:
    the targets of the objectives can be computed once, and a model and its frozen copy see the same cells.

    Attributes:
        fraction: hidden fraction of the cells, in (0, 1].
        grid: cells along a side; 14 gives the patches of a ViT/16 at 224 pixels. If it does not divide the side, cell
            sizes differ by one pixel.
        seed: random seed.

    Raises:
        UserError: the fraction is outside (0, 1], or the grid is smaller than 1.
    """

    name: ClassVar[str] = "random-mask"
    example: ClassVar[str] = "random-mask:0.75"
    fraction: float = 0.75
    grid: int = 14
    seed: int = 0

    def __post_init__(self) -> None:
        _check_fraction(self)
        if self.grid < 1:
            raise UserError(f"random-mask needs a grid of at least one cell along a side, not {self.grid}.")

    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Return the masks, bool [N, 1, H, W].

        Raises:
            UserError: the grid has more cells along a side than the image has pixels.
        """
        height, width = images.shape[-2:]
        if self.grid > min(height, width):
            raise UserError(
                f"random-mask's grid of {self.grid} cells a side is finer than images of {height}x{width} pixels; "
                f"give a coarser one, for example random-mask:{self.fraction:g}:{min(height, width)}."
            )
        drawn = draws.generators(images, "mask", self.seed)
        cells = torch.stack([self._cells(generator) for generator in drawn])
        rows, columns = (torch.arange(side) * self.grid // side for side in (height, width))
        return cells[:, None, rows[:, None], columns].to(images.device)

    def _cells(self, generator: torch.Generator) -> torch.Tensor:
        """Return the hidden cells of one image, bool [grid, grid], on the CPU."""
        hidden = torch.zeros(self.grid**2, dtype=torch.bool)
        hidden[torch.randperm(self.grid**2, generator=generator)[: round(self.fraction * self.grid**2)]] = True
        return hidden.view(self.grid, self.grid)


@dataclass(frozen=True)
class Reconstruct(Task):
    """A task that hides nothing: the model reconstructs its input."""

    name: ClassVar[str] = "reconstruct"
    example: ClassVar[str] = "reconstruct"

    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mask, bool [1, 1, H, W], all False."""
        return torch.zeros(1, 1, *images.shape[-2:], dtype=torch.bool, device=images.device)


TASKS: dict[str, type[Task]] = {task.name: task for task in (CenterCrop, Outpaint, RandomMask, Reconstruct)}


def parse(text: str) -> Task:
    """Return the task for a string such as ``"center-crop:0.5"``; omitted numbers have their defaults.

    Raises:
        UserError: there is no such task, or its numbers cannot be parsed.
    """
    name, *numbers = text.split(":")
    if name not in TASKS:
        known = ", ".join(task.example for task in TASKS.values())
        raise UserError(f"there is no task `{name}`; known: {known}.")
    task = TASKS[name]
    kinds: list[Any] = [type(field.default) for field in fields(cast("type[DataclassInstance]", task))]
    if len(numbers) > len(kinds):
        raise UserError(f"{name} takes at most {len(kinds)} numbers, as in {task.example}, not {len(numbers)}.")
    try:
        values = [kind(number) for kind, number in zip(kinds, numbers, strict=False)]
    except ValueError:
        raise UserError(f"{name} needs numbers after the colon, as in {task.example}, not `{text}`.") from None
    return task(*values)


def _check_fraction(task: CenterCrop | Outpaint | RandomMask) -> None:
    if not 0 < task.fraction <= 1:
        raise UserError(f"{task.name} needs a fraction in (0, 1], as in {task.example}, not {task.fraction:g}.")


def _middle(images: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return the mask of the centre, bool [1, 1, H, W]."""
    height, width = images.shape[-2:]
    tall, wide = round(fraction * height), round(fraction * width)
    top, left = (height - tall) // 2, (width - wide) // 2
    inside = torch.zeros(1, 1, height, width, dtype=torch.bool, device=images.device)
    inside[..., top : top + tall, left : left + wide] = True
    return inside
