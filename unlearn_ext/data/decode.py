"""Decode one image, of any kind that Pillow reads, to the pixels that a model takes."""

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

__all__ = ["Decoded", "decode"]

_NOT_FRAMES = ("MPO", "PSD")  # a photograph with its previews, a picture with its layers: the first is the picture

_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks with texts, and with a colour profile
_XMP = b"XML:com.adobe.xmp\0"  # the one text that may say how the picture is turned
_KEY_SCALE = {"L;2": 85, "L;4": 17}  # from greys of 2 and of 4 bits to 8


class Decoded(NamedTuple):
    """One decoded image.

    Attributes:
        pixels: uint8 [C, size, size].
        several_frames: whether the file holds several frames or pages, of which these pixels are the first.
        guessed: largest value of the range that was guessed for its numbers; None where the file says it.
    """

    pixels: np.ndarray
    several_frames: bool
    guessed: int | None


def decode(content: Path | BinaryIO, size: int, channels: int) -> Decoded:
    """Decode one image.

    It is turned as its EXIF orientation says. Transparent parts are laid on white. Deep greys are scaled to 8 bits as
    :func:`~unlearn_ext.data.depth.scaled` says. Of several frames or pages the first is taken. Colour profiles are not
    applied.

    Args:
        content: a file, or its bytes.
        size: side in pixels to bring it to, antialiased, without keeping the aspect.
        channels: 1 for grey, 3 for RGB.

    Raises:
        Exception: whatever Pillow raises for what it cannot decode; ``OSError`` for what cannot be opened;
            ``ValueError`` with the reason for what is no file, no image, a raw photograph, or of an unknown range.
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
            with suppress(Exception):  # the pixels are good; EXIF data that is not says nothing of how to turn them
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
    """Return a PNG without its texts and profile: Pillow refuses a file for one above 1 MB, such as a workflow."""
    kept = io.BytesIO()
    kept.write(file.read(len(_PNG)))
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        body = file.read(length + 4)  # with the checksum
        if kind not in _NOTES or body.startswith(_XMP):
            kept.write(header + body)
    kept.write(header)  # what is cut off stays so
    kept.seek(0)
    return kept


def _scale_key(image: Image) -> None:
    """Bring the transparent colour of a PNG to the depth at which Pillow gives its pixels, which Pillow leaves to us.

    Args:
        image: opened, not loaded.

    Raises:
        ValueError: it has 16-bit colours, of which Pillow gives 8 bits: neighbours of the transparent one would vanish.
    """
    if image.format != "PNG" or "transparency" not in image.info or not image.tile:
        return
    raw_mode = image.tile[0][3]
    if raw_mode == "RGB;16B":
        raise ValueError("it has 16-bit colours, one of them transparent: save it with an alpha channel, or 8 bits")
    if raw_mode in _KEY_SCALE:
        image.info["transparency"] *= _KEY_SCALE[raw_mode]


def _in_bytes(image: Image) -> tuple[Image, int | None]:
    """Return the image at 8 bits a channel, and opaque, and the range if it was guessed."""
    if depth.is_deep(image):
        return depth.scaled(image)
    if image.has_transparency_data:
        opaque = formats.pillow().new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque, None
    return image, None
