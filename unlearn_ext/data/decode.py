"""Decode one image, in any format that Pillow reads, to pixels of the model's size."""

from __future__ import annotations

import io
import struct
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from ..errors import require
from . import depth, formats

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

__all__ = ["Decoded", "decode"]

_NOT_FRAMES = ("MPO", "PSD")  # further frames are previews (MPO) or layers (PSD) of the first

_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # PNG chunks with text or a colour profile
_XMP = b"XML:com.adobe.xmp\0"  # the only text chunk that may contain the orientation
_KEY_SCALE = {"L;2": 85, "L;4": 17}  # factors from 2-bit and 4-bit greys to 8 bits


class Decoded(NamedTuple):
    """One decoded image.

    Attributes:
        pixels: uint8 [C, size, size].
        several_frames: whether the file has several frames or pages; the pixels are those of the first.
        guessed: upper end of the value range if it was guessed; None if the file states the range.
    """

    pixels: np.ndarray
    several_frames: bool
    guessed: int | None


def decode(content: Path | BinaryIO, size: int, channels: int) -> Decoded:
    """Decode one image.

    The EXIF orientation is applied. Transparent parts become white. Greys of more than 8 bits are scaled by
    :func:`~unlearn_ext.data.depth.scaled`. Only the first of several frames or pages is used. Colour profiles are not
    applied.

    Args:
        content: a path, or the content as a binary file object.
        size: height and width in pixels of the result; resized with antialiasing, without keeping the aspect ratio.
        channels: 1 for grey, 3 for RGB.

    Raises:
        Exception: any exception of Pillow for a file that it cannot decode; ``OSError`` for a file that cannot be
            opened; ``ValueError`` with the reason for something that is not a file, not an image, a raw photograph, or
            of an unknown value range.
    """
    pillow = formats.pillow()
    suffix = content.suffix.lower() if isinstance(content, Path) else ""
    with _opened(content) as file:
        head = file.read(formats.HEAD)
        file.seek(0)
        try:
            image = pillow.open(_without_notes(file) if head.startswith(_PNG) else file)
        except pillow.UnidentifiedImageError:
            raise ValueError(formats.obstacle(head, suffix)) from None
        with image:
            formats.check_picture(image, suffix)
            several = getattr(image, "is_animated", False) and image.format not in _NOT_FRAMES
            _scale_key(image)
            image.load()
            with suppress(Exception):  # with broken EXIF data the pixels are still usable
                require("PIL.ImageOps", "images").exif_transpose(image, in_place=True)
            opaque, guessed = _in_bytes(image)
            plain = opaque.convert("L" if channels == 1 else "RGB")
    pixels = np.array(plain.resize((size, size), pillow.Resampling.BICUBIC)).reshape(size, size, channels)
    return Decoded(pixels.transpose(2, 0, 1), several, guessed)


def _opened(content: Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if not isinstance(content, Path):
        return nullcontext(content)
    if kind := formats.not_a_file(content):
        raise ValueError(f"it is a {kind} and no file")
    return content.open("rb")


def _without_notes(file: BinaryIO) -> BinaryIO:
    """Return a PNG without text chunks and colour profile, because Pillow rejects a file with one above 1 MB."""
    kept = io.BytesIO()
    kept.write(file.read(len(_PNG)))
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        body = file.read(length + 4)  # including the checksum
        if kind not in _NOTES or body.startswith(_XMP):
            kept.write(header + body)
    kept.write(header)  # a truncated file stays truncated
    kept.seek(0)
    return kept


def _scale_key(image: ImageFile) -> None:
    """Scale the transparent colour of a PNG to the bit depth of the pixels, which Pillow does not do.

    Args:
        image: opened, not yet loaded.

    Raises:
        ValueError: the image has 16-bit colours; Pillow keeps 8 bits, so colours near the transparent one would vanish.
    """
    if image.format != "PNG" or "transparency" not in image.info or not image.tile:
        return
    raw_mode = image.tile[0][3]
    if raw_mode == "RGB;16B":
        raise ValueError("it has 16-bit colours, one of them transparent: save it with an alpha channel, or 8 bits")
    if raw_mode in _KEY_SCALE:
        image.info["transparency"] *= _KEY_SCALE[raw_mode]


def _in_bytes(image: Image) -> tuple[Image, int | None]:
    """Return the image, opaque and with 8 bits per channel, and the upper end of the range if it was guessed."""
    if depth.is_deep(image):
        return depth.scaled(image)
    if image.has_transparency_data:
        opaque = formats.pillow().new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque, None
    return image, None
