"""Scale grey images of more than 8 bits to 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["is_deep", "scaled"]

_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_SCALED = ("PNG", "PPM")  # formats whose 16 bits Pillow reads in its 32-bit mode; PNG in releases before 11
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2  # a value of _PHOTOMETRIC and one of _SAMPLE_FORMAT


def is_deep(image: Image) -> bool:
    """Return whether an image needs :func:`scaled`: it has more than 8 bits per channel, or signed values."""
    return image.mode in _MODES or (image.mode == "L" and _tag(image, _SAMPLE_FORMAT) == _SIGNED)


def scaled(image: Image) -> tuple[Image, int | None]:
    """Scale a grey image of more than 8 bits to 8 bits; a transparent grey becomes white.

    The number of bits in the file gives the range: 0 to 65535 for 16 bits, 0 to 4095 for 12 bits, 0 to 32767 for signed
    16 bits. Files of 32 bits do not state their range: floats up to 1 are taken as 0 to 1; for whole numbers the guess
    is 0 to 255, or 0 to 65535 if a value is larger.

    Args:
        image: a loaded image for which :func:`is_deep` is true.

    Returns:
        The image in mode ``"L"``, and the upper end of the range if it was guessed, else None.

    Raises:
        ValueError: a value is outside the range, or no range can be guessed.
    """
    values = np.asarray(image)
    if image.mode == "L":
        values = values.view(np.int8)
    values = values.astype(np.float64)
    most = _most(image)
    guessed = None
    if most is None and not (image.mode == "F" and values.max() <= 1):
        most = guessed = _guess(values)
    most = most or 1
    if not (values.min() >= 0 and values.max() <= most):
        raise ValueError(f"its values reach from {values.min():g} to {values.max():g}, and not from 0 to {most}")
    grey = np.rint(values * (255 / most)).astype(np.uint8)
    if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if (clear := image.info.get("transparency")) is not None:
        grey[values == clear] = 255
    return require("PIL.Image", "images").fromarray(grey), guessed


def _most(image: Image) -> int | None:
    """Return the largest value that the format allows; None if that does not determine the range."""
    bits = _tag(image, _BITS)
    if bits is None:
        return 65535 if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SCALED) else None
    if bits > 16:
        return None
    return 2 ** (bits - (_tag(image, _SAMPLE_FORMAT) == _SIGNED)) - 1


def _guess(values: np.ndarray) -> int:
    if np.array_equal(values, np.rint(values)):  # false if a value is NaN
        for most in (255, 65535):
            if values.max() <= most:
                return most
    raise ValueError(
        f"its values reach from {values.min():g} to {values.max():g}, and the file does not say of what range: save it "
        "with 8 or 16 bits, or as floats from 0 to 1"
    )


def _tag(image: Image, number: int) -> int | None:
    """Return the first value of a TIFF tag; None if the image has no such tag or is not a TIFF."""
    value = getattr(image, "tag_v2", {}).get(number) if image.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) else value
