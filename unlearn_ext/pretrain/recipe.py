"""What a family's recipe says, so that one loop trains them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ..data import SIDE
from ..models import I2IModel
from ..tasks import Corruption
from ..unlearning.batches import Shuffled, pixels

__all__ = ["Minibatches", "Recipe", "convolutional", "distance"]


class Minibatches:
    """Images drawn at random, float32 [B, C, S, S]; ``generator`` is for whatever else a loss draws."""

    def __init__(self, images: torch.Tensor, size: int, generator: torch.Generator) -> None:
        self.images, self.generator = images, generator
        self._indices = Shuffled(len(images), size, generator)

    def __next__(self) -> torch.Tensor:
        return pixels(self.images[next(self._indices)])


@dataclass(frozen=True)
class Recipe(ABC):
    """How a family's small model is built and trained; a change of any value trains anew.

    Attributes:
        family: of the model.
        steps: optimizer steps.
        batch_size: images a step.
        lr: peak learning rate of a one-cycle schedule.
        size: side in pixels of the built-in images that suit the small model.
    """

    family: ClassVar[str]
    size: ClassVar[int] = SIDE
    steps: int = 400
    batch_size: int = 64
    lr: float = 3e-3

    @abstractmethod
    def build(self, channels: int, size: int) -> I2IModel:
        """The model with random weights, for images [N, channels, size, size]; ``model.module`` is what is trained."""

    @abstractmethod
    def loss(self, model: I2IModel, batches: Minibatches, task: Corruption, step: int) -> torch.Tensor:
        """What a step lowers, 0-d: how badly the model fills in what ``task`` takes away."""


def convolutional(widths: tuple[int, ...], channels: int, size: int) -> dict[str, Any]:
    """Arguments that the autoencoders of ``diffusers`` share.

    Args:
        widths: of the blocks, from full resolution down; each but the first halves the side.
        channels: of the images.
        size: their side in pixels.
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
    """L1 + L2, 0-d: the one keeps edges sharp, the other colours right."""
    return F.l1_loss(answer, images) + F.mse_loss(answer, images)
