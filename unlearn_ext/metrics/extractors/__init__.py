"""What looks at images in a person's stead: networks whose features are compared, each under its own name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ...errors import UserError

__all__ = ["KNOWN", "Extractor", "load_extractor"]

KNOWN = ("efficientnet-lite0", "mnist-cnn", "fashion-mnist-cnn", "inception-v3[:FILE]", "clip:FOLDER_OR_ID")


class Extractor(Protocol):
    """A frozen network; any object of this shape will do.

    Attributes:
        name: label of every number it gives. Only Inception-v3 with the weights of FID, and CLIP, are called so.
        size: side in pixels that it resizes images to.
    """

    name: str
    size: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features [N, D] of images, float32 [N, C, H, W] in [-1, 1], grey or RGB."""

    def logits(self, features: torch.Tensor) -> torch.Tensor | None:
        """Logits [N, K] of the classes it was trained on, of its own features; None where there are none."""

    def maps(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Feature maps [N, c, h, w] from fine to coarse, of the same images; empty where it has none."""


def load_extractor(text: str) -> Extractor:
    """The extractor that a text names, such as ``"efficientnet-lite0"`` or ``"clip:openai/clip-vit-base-patch32"``.

    ``efficientnet-lite0`` comes with the extra ``metrics``; ``mnist-cnn`` and ``fashion-mnist-cnn`` are trained once
    and cached; ``inception-v3`` takes the file of weights that FID is defined by, or downloads it; ``clip`` takes a
    folder or a hub id.

    Raises:
        UserError: no such extractor, its weights cannot be had or are not what they are called, or a missing extra.
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
