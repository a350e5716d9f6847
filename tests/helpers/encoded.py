"""Image files that Pillow can read but not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

SHORT, LONG = 3, 4  # types of TIFF tags


def png(pixels: np.ndarray, depth: int, *, key: Iterable[int] | None = None, orientation: int | None = None) -> bytes:
    """Encode a PNG of greys [H, W] or colours [H, W, 3], with ``depth`` bits; the colour ``key`` is transparent."""
    samples = pixels.reshape(len(pixels), -1)
    if depth == 16:
        rows = samples.astype(">u2").view(np.uint8).reshape(len(pixels), -1)
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(len(pixels), -1), axis=-1)
    colour_type = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header)]
    if orientation is not None:
        exif = struct.pack(">4sIHHHIHHI", b"MM\0*", 8, 1, 0x0112, SHORT, 1, orientation, 0, 0)
        chunks.append(chunk(b"eXIf", exif))
    if key is not None:
        chunks.append(chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in key)))
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    """Encode a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff(pixels: np.ndarray, *, order: str = "<", **tags: Any) -> bytes:
    """Encode a TIFF of greys [H, W], with the sample size and format of their dtype.

    Args:
        pixels: grey values of any numeric dtype.
        order: byte order, ``<`` or ``>``.
        tags: 16-bit tags to add or replace, e.g. ``tag_274=3`` for the orientation.
    """
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries = {
        256: width, 257: height, 258: 8 * pixels.dtype.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height,
        279: len(data), 339: kind,
    }  # fmt: skip
    entries |= {int(name.removeprefix("tag_")): value for name, value in tags.items()}
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data)) + data
    out += struct.pack(f"{order}H", len(entries))
    for number, value in sorted(entries.items()):
        size = LONG if number in (254, 256, 257, 273, 278, 279) else SHORT
        packed = struct.pack(f"{order}I" if size == LONG else f"{order}H2x", value)
        out += struct.pack(f"{order}HHI", number, size, 1) + packed
    return out + bytes(4)


def twelve_bits(pixels: np.ndarray) -> bytes:
    """Encode a TIFF of greys [H, W] up to 4095, packed in 12 bits; the width must be even."""
    first, second = pixels[:, ::2].astype(int), pixels[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    return tiff(packed.reshape(len(pixels), -1), tag_256=pixels.shape[1], tag_258=12)
