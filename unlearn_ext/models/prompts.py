"""The text prompts of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from ..errors import UserError

__all__ = ["Prompts"]

_DIGITS = 16  # of the digests in a record


class Prompts(NamedTuple):
    """One prompt for all images, or a prompt of its own for each.

    Attributes:
        fixed: the prompt of all images, if none has its own.
        own: the prompt of each image, by the SHA-256 of its pixels as uint8 [C, H, W], hexadecimal; all images or none.
    """

    fixed: str = ""
    own: Mapping[str, str] = {}

    def record(self) -> dict[str, str]:
        """Return a digest of each image's prompt, by that of its pixels, and of the fixed prompt under ``""``.

        Both are shortened to 16 hexadecimal digits. A run keeps them, and no text.
        """
        prompts = {"": self.fixed, **self.own}
        return {digest[:_DIGITS]: _digest(prompt.encode())[:_DIGITS] for digest, prompt in prompts.items()}

    def changed(self, record: Mapping[str, str], images: Iterable[str]) -> int:
        """Return how many images have another prompt than in an earlier :meth:`record`.

        Args:
            record: the record.
            images: the SHA-256 of their pixels.
        """
        mine = self.record()
        short = {digest[:_DIGITS] for digest in images}
        return sum(mine.get(digest, mine[""]) != record.get(digest, record[""]) for digest in short)

    @classmethod
    def filled(cls, fixed: str, own: Mapping[str, str], known: Iterable[str]) -> Prompts:
        """Return the prompts of images of which some have their own; the others get the fixed one.

        Args:
            fixed: prompt of the images that have none of their own.
            own: prompts by the SHA-256 of the pixels; those of other images are left out.
            known: the SHA-256 of all images.
        """
        filled = {digest: own.get(digest, fixed) for digest in known}
        return cls(fixed, filled if own.keys() & filled.keys() else {})

    def of(self, images: torch.Tensor) -> list[str]:
        """Return the prompts of images, float [N, C, H, W] in [-1, 1].

        Raises:
            UserError: images have prompts of their own, but one of these has none.
        """
        if not self.own:
            return [self.fixed] * len(images)
        digests = [_digest(image.numpy().tobytes()) for image in _in_bytes(images)]
        if any(digest not in self.own for digest in digests):
            raise UserError(
                "an image has no prompt, although others have prompts of their own: give the prompts of all images, or "
                "one prompt for all. Augmented images cannot be recognised: leave out --augment."
            )
        return [self.own[digest] for digest in digests]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _in_bytes(images: torch.Tensor) -> torch.Tensor:
    return images.cpu().add(1).mul(127.5).round().to(torch.uint8).contiguous()
