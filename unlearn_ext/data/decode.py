"""One encoded image, of any kind that Pillow reads, to the pixels that a model takes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..errors import require

if TYPE_CHECKING:
    from PIL.Image import Image

# Largest value of the modes that are deeper than a byte. What Pillow calls I is in practice a 16-bit PNG.
_DEEP = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}
_NOT_FRAMES = ("MPO", "PSD")  # a photograph with its previews, a picture with its layers: the first is the picture


def decode(content: Path | BinaryIO, size: int, channels: int) -> tuple[np.ndarray, bool]:
    """Decode one image.

    It is turned as its EXIF orientation says. Transparent parts are laid on white. 16-bit grey is scaled to 8 bits; so
    are floats in [0, 1]. Of several frames or pages the first is taken. Colour profiles are not applied.

    Args:
        content: a file, or its bytes.
        size: side in pixels to bring it to, antialiased, without keeping the aspect.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 [C, size, size], and whether there were several frames or pages.

    Raises:
        Exception: whatever Pillow raises for what it cannot decode, and ``ValueError`` for values of unknown range.
    """
    pillow = require("PIL.Image", "images")
    with pillow.open(content) as image:
        several = getattr(image, "is_animated", False) and image.format not in _NOT_FRAMES
        image.load()
        with suppress(Exception):  # the pixels are good; EXIF data that is not says nothing of how to turn them
            require("PIL.ImageOps", "images").exif_transpose(image, in_place=True)
        plain = _in_bytes(image).convert("L" if channels == 1 else "RGB")
    pixels = np.array(plain.resize((size, size), pillow.Resampling.BICUBIC)).reshape(size, size, channels)
    return pixels.transpose(2, 0, 1), several


def _in_bytes(image: Image) -> Image:
    """The image at 8 bits a channel, and opaque."""
    pillow = require("PIL.Image", "images")
    if image.mode in _DEEP:
        values, most = np.asarray(image, np.float64), _DEEP[image.mode]
        if not (values.min() >= 0 and values.max() <= most):
            raise ValueError(f"its values are not within 0 and {most}")
        return pillow.fromarray(np.rint(values * (255 / most)).astype(np.uint8))
    if image.has_transparency_data:
        opaque = pillow.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque
    return image
