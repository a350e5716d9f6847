"""The base class of the families' recipes, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F

from ..data import SIDE
from ..errors import UserError
from ..models import I2IModel
from ..tasks import Corruption
from ..unlearning.batches import Shuffled, pixels

__all__ = ["Minibatches", "Recipe", "convolutional", "distance"]

_Model = TypeVar("_Model", bound=I2IModel)


class Minibatches:
    """An iterator of random minibatches, float32 [B, C, S, S]; losses use ``generator`` for other random numbers."""

    def __init__(self, images: torch.Tensor, size: int, generator: torch.Generator) -> None:
        self.images, self.generator = images, generator
        self._indices = Shuffled(len(images), size, generator)

    def __next__(self) -> torch.Tensor:
        return pixels(self.images[next(self._indices)])


@dataclass(frozen=True)
class Recipe(ABC, Generic[_Model]):
    """Architecture and training of a family's small model; changing any value trains a new one.

    Attributes:
        family: family of the model.
        steps: number of optimizer steps.
        batch_size: number of images per step.
        lr: peak learning rate of a one-cycle schedule.
        size: side in pixels of the built-in images for the small model.
    """

    family: ClassVar[str]
    size: ClassVar[int] = SIDE
    steps: int = 400
    batch_size: int = 64
    lr: float = 3e-3

    @property
    @abstractmethod
    def multiple(self) -> int:
        """The number of pixels that must divide the side of the images."""

    def check_size(self, size: int) -> None:
        """Raise ``UserError`` if the model cannot have images of this side in pixels."""
        if size < 1 or size % self.multiple:
            raise UserError(
                f"the small model of family {self.family} takes images whose side is a multiple of {self.multiple} "
                f"pixels, not {size}."
            )

    @abstractmethod
    def build(self, channels: int, size: int) -> _Model:
        """Return the model with random weights, for images [N, channels, size, size]; ``model.module`` is trained."""

    @abstractmethod
    def loss(self, model: _Model, batches: Minibatches, task: Corruption, step: int) -> torch.Tensor:
        """Return the loss of the next minibatch, 0-d: the error in filling in what ``task`` hides."""


def convolutional(widths: tuple[int, ...], channels: int, size: int) -> dict[str, Any]:
    """Return the constructor arguments that the autoencoders of ``diffusers`` share.

    Args:
        widths: numbers of channels of the blocks, from full resolution down; each block but the first halves the side.
        channels: number of image channels.
        size: side of the images in pixels.
    """
    return {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "norm_num_groups": min(8, *widths),
        "mid_block_add_attention": False,
        "sample_size": size,
    }


def distance(answer: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return L1 + L2, 0-d; L1 keeps edges sharp, L2 keeps colours right."""
    return F.l1_loss(answer, images) + F.mse_loss(answer, images)
