"""What a step is given: minibatches of both sides, the next prepared while the present one is used."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from .._utils import distributed, draws
from ..data.augment import Augment
from ..models import I2IModel, Inputs
from ..tasks import Corruption

__all__ = ["Batch", "Shuffled", "Side", "T", "ahead", "in_bytes", "pairs", "pixels"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Some images of one side.

    Attributes:
        inputs: what E is given, tensors [B, ...] on the model's device.
        target: latents that they are compared with, [B, ...] or [1, ...]; None where the frozen encoder makes them.
        noise: images of noise for the frozen encoder to make them of, each like ``inputs[0]``; none for retain images.
        images: not corrupted, float [B, C, H, W] in [-1, 1], where they were kept: only methods that look at pictures
            need them on the model's device.
        weight: of this process's part in a mean over the whole minibatch; 1 where there is one process.
    """

    inputs: Inputs
    target: torch.Tensor | None
    noise: Inputs
    images: torch.Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Side:
    """Images to forget, or images to retain, as E is given them.

    Attributes:
        images: uint8 [N, C, H, W], or float in [-1, 1]; not corrupted.
        model: which says what E is given for an image.
        task: T.
        seed: of augmentation, of the noise images, and of what a model is given at random.
        augment: of training images.
        targets: cached, [N, ...] or [1, ...] where it is one for all; None where they are made for each minibatch.
        noises: how many images of noise go with each minibatch.
    """

    images: torch.Tensor
    model: I2IModel
    task: Corruption
    seed: int = 0
    augment: Augment | None = None
    targets: torch.Tensor | None = None
    noises: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: torch.Tensor, draw: int = 0, weight: float = 1.0) -> Batch:
        """The images at ``index`` (int64 [B]).

        Args:
            index: which.
            draw: number of the step, in training: what is random is drawn anew in each. 0 for evaluation: without
                augmentation, and always the same.
            weight: see :class:`Batch`.
        """
        images, number = pixels(self.images[index]), (self.seed << 32) + draw
        if draw and self.augment is not None:
            images = self.augment(images, number)
        inputs = self.model.inputs(images, self.task, number)
        noise = [draws.normal(images, "noise", number, count) for count in range(self.noises)]
        return Batch(self._moved(*inputs), self._target(index), self._moved(*noise), images, weight)

    def batches(self, index: torch.Tensor, size: int) -> Iterator[Batch]:
        """The images at ``index``, so many at once, for evaluation."""
        return ahead(self.batch(part) for part in index.split(size) if len(part))

    def _target(self, index: torch.Tensor) -> torch.Tensor | None:
        if self.targets is None:
            return None
        (target,) = self._moved(self.targets[index] if len(self.targets) > 1 else self.targets)
        return target

    def _moved(self, *tensors: torch.Tensor) -> Inputs:
        """On the model's device, without waiting for the copy."""
        device = self.model.device
        tensors = tuple(t.contiguous() for t in tensors)  # a mask expanded over a minibatch cannot be pinned
        if device.type == "cuda":
            tensors = tuple(t.pin_memory() if t.device.type == "cpu" else t for t in tensors)
        return tuple(t.to(device, non_blocking=True) for t in tensors)


class Shuffled:
    """Minibatches of indices: every image once before any comes again, which takes noise out of f1."""

    def __init__(self, count: int, size: int, generator: torch.Generator) -> None:
        self.count, self.size, self.generator = count, min(size, count), generator
        self._left = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> torch.Tensor:
        if len(self._left) < self.size:
            self._left = torch.cat([self._left, torch.randperm(self.count, generator=self.generator)])
        batch, self._left = self._left[: self.size], self._left[self.size :]
        return batch


def pairs(forget: Side, retain: Side, size: int, seed: int, used: int = 0) -> Iterator[tuple[Batch, Batch]]:
    """Minibatches to forget and to retain without end; in several processes, this one's part of them.

    Args:
        forget: images to forget.
        retain: images to retain.
        size: images in each minibatch.
        seed: of their order.
        used: minibatches to begin after.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = [(side, Shuffled(len(side), size, generator)) for side in (forget, retain)]
    for _ in range(used):
        for _, indices in sides:
            next(indices)

    def drawn() -> Iterator[tuple[Batch, Batch]]:
        for draw in itertools.count(used + 1):
            shares = [(side, *distributed.share(next(indices))) for side, indices in sides]
            yield tuple(side.batch(index, draw, weight) for side, index, weight in shares)

    return ahead(drawn())


def ahead(made: Iterator[T]) -> Iterator[T]:
    """The same things, each made in another thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, made, None)
        while (thing := following.result()) is not None:
            following = thread.submit(next, made, None)
            yield thing


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Images as models know them, float in [-1, 1], of images uint8 or float."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images


def in_bytes(images: torch.Tensor) -> torch.Tensor:
    """uint8 of images float in [-1, 1], as files hold them."""
    return images.add(1).mul(127.5).round().to(torch.uint8)
