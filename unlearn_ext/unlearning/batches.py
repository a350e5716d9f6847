"""Minibatches of forget and retain images; the next one is prepared while the current one is used."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from .._utils import distributed, draws
from ..data.augment import Augment
from ..models import I2IModel, Inputs
from ..tasks import Corruption

__all__ = ["Batch", "Shuffled", "Side", "T", "ahead", "in_bytes", "pairs", "pixels", "together"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """A minibatch of forget or of retain images.

    Attributes:
        inputs: inputs of the encoder, tensors [B, ...] on the model's device.
        target: target latents, [B, ...] or [1, ...]; None if the frozen encoder computes them for each minibatch.
        noise: images of noise from which the frozen encoder computes the targets, each with the shape of
            ``inputs[0]``; empty for retain images.
        images: images before corruption, float [B, C, H, W] in [-1, 1], on the device of the image set. They are not
            moved, because only methods that compare pictures need them on the model's device.
        weight: weight of this process's mean loss in the mean over the whole minibatch; 1 with one process.
    """

    inputs: Inputs
    target: torch.Tensor | None
    noise: Inputs
    images: torch.Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Side:
    """The forget set or the retain set, with all that is needed to make minibatches from it.

    Attributes:
        images: uint8 [N, C, H, W], or float in [-1, 1]; not corrupted.
        model: the model whose ``inputs`` method makes the encoder's inputs.
        task: the task T.
        seed: seed of augmentation, of the noise images and of the model's random inputs.
        augment: augmentation of training images.
        targets: cached target latents, [N, ...], or [1, ...] if all images share one; None if they are computed for
            each minibatch.
        noises: number of noise images per image of a minibatch.
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
        """Return a minibatch.

        Args:
            index: positions of the images, int64 [B].
            draw: number of the step in training; each number gives other random values. 0 for evaluation: no
                augmentation, and the same random values in every call.
            weight: see :class:`Batch`.
        """
        images, number = pixels(self.images[index]), (self.seed << 32) + draw
        if draw and self.augment is not None:
            images = self.augment(images, number)
        inputs = self.model.inputs(images, self.task, number)
        shape = inputs[0].shape[1:]
        noise = [draws.normal(images, "noise", number, count, shape=shape) for count in range(self.noises)]
        return Batch(self._moved(*inputs), self._target(index), self._moved(*noise), images, weight)

    def batches(self, index: torch.Tensor, size: int) -> Iterator[Batch]:
        """Yield the images at ``index`` for evaluation, in minibatches of at most ``size`` images."""
        return ahead(self.batch(part) for part in index.split(size) if len(part))

    def _target(self, index: torch.Tensor) -> torch.Tensor | None:
        if self.targets is None:
            return None
        (target,) = self._moved(self.targets[index] if len(self.targets) > 1 else self.targets)
        return target

    def _moved(self, *tensors: torch.Tensor) -> Inputs:
        """Return tensors on the model's device, without waiting for the copy."""
        device = self.model.device
        tensors = tuple(t.contiguous() for t in tensors)  # an expanded mask cannot be pinned
        if device.type == "cuda":
            tensors = tuple(t.pin_memory() if t.device.type == "cpu" else t for t in tensors)
        return tuple(t.to(device, non_blocking=True) for t in tensors)


class Shuffled:
    """Minibatches of indices: every image is used once per epoch, which makes f1 less noisy."""

    def __init__(self, count: int, size: int, generator: torch.Generator) -> None:
        self.count, self.size, self.generator = count, min(size, count), generator
        self._left = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> torch.Tensor:
        if len(self._left) < self.size:
            self._left = torch.cat([self._left, torch.randperm(self.count, generator=self.generator)])
        batch, self._left = self._left[: self.size], self._left[self.size :]
        return batch


def pairs(forget: Side, retain: Side, size: int, seed: int, used: int = 0) -> Iterator[tuple[Batch, Batch]]:
    """Return pairs of a forget and a retain minibatch, without end; the arguments are those of :func:`together`."""
    return ((to_forget, to_retain) for to_forget, to_retain in together((forget, retain), size, seed, used))


def together(sides: Sequence[Side], size: int, seed: int, used: int = 0) -> Iterator[tuple[Batch, ...]]:
    """Yield a minibatch of each side, without end; with several processes, this process's share.

    Args:
        sides: sets of images.
        size: images in each minibatch.
        seed: seed of the order of the images.
        used: number of minibatches to skip, because an earlier process used them.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [(side, Shuffled(len(side), size, generator)) for side in sides]
    for _ in range(used):
        for _, indices in orders:
            next(indices)

    def drawn() -> Iterator[tuple[Batch, ...]]:
        for draw in itertools.count(used + 1):
            shares = [(side, *distributed.share(next(indices))) for side, indices in orders]
            yield tuple(side.batch(index, draw, weight) for side, index, weight in shares)

    return ahead(drawn())


def ahead(made: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator; another thread computes the next item while the current one is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, made, None)
        while (thing := following.result()) is not None:
            following = thread.submit(next, made, None)
            yield thing


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Return images as float in [-1, 1]; float images are returned as they are."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images


def in_bytes(images: torch.Tensor) -> torch.Tensor:
    """Convert float images in [-1, 1] to uint8, as they are stored in files."""
    return images.add(1).mul(127.5).round().to(torch.uint8)
