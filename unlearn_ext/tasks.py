"""T(x): what is taken away from an image before the model must give it back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass, fields
from typing import ClassVar

import torch

from ._utils import draws
from .errors import UserError

__all__ = ["TASKS", "CenterCrop", "Outpaint", "RandomMask", "Reconstruct", "Task", "parse"]


class Task(ABC):
    """What is hidden from the model; what is hidden is filled with 0, the middle grey of images in [-1, 1].

    Attributes:
        name: as it is typed.
        example: of how it is typed.
    """

    name: ClassVar[str]
    example: ClassVar[str]

    @abstractmethod
    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Bool [N, 1, H, W], or [1, 1, H, W] where it is the same for all, of images [N, C, H, W]: True is hidden."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] without what is hidden; the input is not written to."""
        return images.masked_fill(self.mask(images), 0)

    def __str__(self) -> str:
        return ":".join([self.name, *map(str, astuple(self))])


@dataclass(frozen=True)
class CenterCrop(Task):
    """A square in the middle is hidden.

    Its side is ``round(fraction · side)`` pixels along each axis; 0.5 hides a quarter of the area.

    Attributes:
        fraction: of a side that is hidden, in (0, 1].

    Raises:
        UserError: the fraction is outside (0, 1].
    """

    name: ClassVar[str] = "center-crop"
    example: ClassVar[str] = "center-crop:0.5"
    fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_fraction(self)

    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Bool [1, 1, H, W]."""
        return _middle(images, self.fraction)


@dataclass(frozen=True)
class Outpaint(Task):
    """All but a square in the middle is hidden: what ``CenterCrop`` of the same fraction hides, this one keeps.

    Attributes:
        fraction: of a side that is kept, in (0, 1]; 0.5 keeps a quarter of the area.

    Raises:
        UserError: the fraction is outside (0, 1].
    """

    name: ClassVar[str] = "outpaint"
    example: ClassVar[str] = "outpaint:0.5"
    fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_fraction(self)

    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Bool [1, 1, H, W]."""
        return ~_middle(images, self.fraction)


@dataclass(frozen=True)
class RandomMask(Task):
    """Cells of a square grid are hidden, ``round(fraction · grid²)`` of them, chosen anew for every image.

    The choice is drawn from the seed and the image's own pixels. So an image has one mask, in whatever batch and order
    it comes: the targets of the objectives, computed once, stay true, and a model given the mask sees the same cells as
    its frozen copy.

    Attributes:
        fraction: of the area that is hidden, in (0, 1].
        grid: cells along a side; 14 are the patches of a ViT/16 at 224 pixels. Where it does not divide the side, cells
            differ by a pixel.
        seed: of the choice.

    Raises:
        UserError: the fraction is outside (0, 1], or the grid has no cell.
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
        """Bool [N, 1, H, W].

        Raises:
            UserError: the grid is finer than the pixels.
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
        """Bool [grid, grid], on the CPU."""
        hidden = torch.zeros(self.grid**2, dtype=torch.bool)
        hidden[torch.randperm(self.grid**2, generator=generator)[: round(self.fraction * self.grid**2)]] = True
        return hidden.view(self.grid, self.grid)


@dataclass(frozen=True)
class Reconstruct(Task):
    """Nothing is hidden: the model gives back what it was given."""

    name: ClassVar[str] = "reconstruct"
    example: ClassVar[str] = "reconstruct"

    def mask(self, images: torch.Tensor) -> torch.Tensor:
        """Bool [1, 1, H, W], all False."""
        return torch.zeros(1, 1, *images.shape[-2:], dtype=torch.bool, device=images.device)


TASKS: dict[str, type[Task]] = {task.name: task for task in (CenterCrop, Outpaint, RandomMask, Reconstruct)}


def parse(text: str) -> Task:
    """The task that a text such as ``"center-crop:0.5"`` names; numbers left out have their defaults.

    Raises:
        UserError: no such task, or its numbers cannot be read.
    """
    name, *numbers = text.split(":")
    if name not in TASKS:
        known = ", ".join(task.example for task in TASKS.values())
        raise UserError(f"there is no task `{name}`; known: {known}.")
    task = TASKS[name]
    kinds = [type(field.default) for field in fields(task)]
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
    """Bool [1, 1, H, W], True in the square in the middle."""
    height, width = images.shape[-2:]
    tall, wide = round(fraction * height), round(fraction * width)
    top, left = (height - tall) // 2, (width - wide) // 2
    inside = torch.zeros(1, 1, height, width, dtype=torch.bool, device=images.device)
    inside[..., top : top + tall, left : left + wide] = True
    return inside
