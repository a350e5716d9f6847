"""A forget set and a retain set without common images, each with held-out validation images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..errors import UserError, first_ten
from .storage import gather

__all__ = ["ForgetRetain", "divide"]


@dataclass(frozen=True)
class ForgetRetain:
    """A forget set and a retain set, each with a held-out validation part.

    All four are uint8 [N, C, H, W] on the CPU.

    Attributes:
        name: description of the images, for reports.
        forget: training images whose owners asked to be forgotten.
        retain: training images of everyone else.
        forget_validation: held-out images of the forget classes.
        retain_validation: held-out images of the retain classes.
    """

    name: str
    forget: torch.Tensor
    retain: torch.Tensor
    forget_validation: torch.Tensor
    retain_validation: torch.Tensor


def divide(
    name: str,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    validation: float = 0.2,
    seed: int = 0,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
    memory: float = math.inf,
) -> ForgetRetain:
    """Hold out a random fraction of each set for validation.

    Args:
        name: description of the images.
        forget: uint8 [N, C, H, W], or float in [-1, 1].
        retain: uint8 [M, C, H, W], or float in [-1, 1].
        validation: fraction of each set held out; at least one image is held out and at least one is not.
        seed: random seed of the shuffle.
        names: names of the N and the M images for messages; by default their positions.
        memory: limit in GiB; a larger part is stored in a file instead of memory.

    Raises:
        UserError: a set has fewer than two images, or an image with the same pixels is in both sets.
    """
    if min(len(forget), len(retain)) < 2:
        raise UserError("both sets need at least two images: one to train on and one to validate with.")
    _refuse_shared(forget, retain, names)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for images in (forget, retain):
        order = torch.randperm(len(images), generator=generator)
        held_out = min(max(round(validation * len(images)), 1), len(images) - 1)
        parts.append([gather(images, rows, memory) for rows in (order[held_out:], order[:held_out])])
    (forget, forget_validation), (retain, retain_validation) = parts
    return ForgetRetain(name, forget, retain, forget_validation, retain_validation)


def _digests(images: torch.Tensor) -> Iterator[bytes]:
    return (hashlib.sha256(image.numpy().tobytes()).digest() for image in images)


def _refuse_shared(
    forget: torch.Tensor, retain: torch.Tensor, names: tuple[Sequence[str], Sequence[str]] | None
) -> None:
    forget_names, retain_names = names or ([f"{side}[{i}]" for i in range(len(images))]
                                           for side, images in (("forget", forget), ("retain", retain)))  # fmt: skip
    retained: dict[bytes, str] = {}
    for digest, name in zip(_digests(retain), retain_names, strict=True):
        retained.setdefault(digest, name)
    pairs = [
        f"{name} = {retained[digest]}"
        for digest, name in zip(_digests(forget), forget_names, strict=True)
        if digest in retained
    ]
    if pairs:
        raise UserError(
            f"{len(pairs)} image{'s are' if len(pairs) > 1 else ' is'} in the forget set and in the retain set: "
            f"the same image cannot be forgotten and retained; remove it from one of them.{first_ten(pairs)}"
        )
