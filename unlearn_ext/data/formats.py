"""Recognise images by content and suffix, and explain what to do if one cannot be read."""

from __future__ import annotations

import codecs
import importlib
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..errors import require

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image
    from PIL.TiffImagePlugin import TiffImageFile

__all__ = ["HEAD", "check_picture", "not_a_file", "obstacle", "other_kind", "pillow", "recognise"]

HEAD = 512  # bytes to read: enough for every signature below and the brands of a HEIF file

# (offset, bytes, format); the first match counts.
_SIGNATURES = (
    (8, b"CR\x02", "raw"), (0, b"IIRO", "raw"), (0, b"IIRS", "raw"), (0, b"MMOR", "raw"), (0, b"IIU\0", "raw"),
    (0, b"FUJIFILMCCD-RAW", "raw"), (0, b"FOVb", "raw"), (0, b"\0MRM", "raw"), (6, b"HEAPCCDR", "raw"),
    (0, b"\xff\xd8\xff", "JPEG"), (0, b"\x89PNG\r\n\x1a\n", "PNG"), (0, b"GIF8", "GIF"), (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"II+\0", "TIFF"), (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  \r\n", "JPEG 2000"), (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL \r\n", "JPEG XL"), (0, b"\xff\x0a", "JPEG XL"), (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS", "PSD (Photoshop)"), (0, b"gimp xcf", "XCF (GIMP)"), (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"), (0, b"#?RGBE", "Radiance HDR"), (0, b"qoif", "QOI"), (128, b"DICM", "DICOM"),
)  # fmt: skip
# Brands of files that begin with a box `ftyp`, which videos also do.
_BRANDS = {
    "raw": (b"crx ",),
    "AVIF": (b"avif", b"avis"),
    "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"),
}
# Image suffixes in addition to those that Pillow registers.
_SUFFIXES = {
    suffix: name
    for name, suffixes in {
        "raw": ".3fr .ari .arw .bay .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw "
               ".orf .pef .raf .rw2 .rwl .sr2 .srf .srw .x3f",
        "HEIF": ".heic .heics .heif .heifs .hif",
        "AVIF": ".avif .avifs",
        "JPEG XL": ".jxl",
        "JPEG XR": ".hdp .jxr .wdp",
        "PSD (Photoshop)": ".psb",
        "XCF (GIMP)": ".xcf",
        "OpenEXR": ".exr",
        "Radiance HDR": ".hdr",
        "QOI": ".qoi",
        "DICOM": ".dcm",
        "SVG": ".svg .svgz",
    }.items()
    for suffix in suffixes.split()
}  # fmt: skip
# Pillow's decoder of each format; formats without an entry have no decoder.
_DECODERS = {
    "JPEG": "JPEG", "PNG": "PNG", "GIF": "GIF", "WebP": "WEBP", "TIFF": "TIFF", "JPEG 2000": "JPEG2000", "QOI": "QOI",
    "PSD (Photoshop)": "PSD", "AVIF": "AVIF", "HEIF": "HEIF", "JPEG XL": "JXL",
}  # fmt: skip
# Packages that add a decoder to Pillow, and the module that registers it.
_PLUG_INS = {
    "HEIF": ("pillow-heif", "pillow_heif.HeifImagePlugin"),
    "JXL": ("pillow-jxl-plugin", "pillow_jxl"),
    "AVIF": ("pillow-avif-plugin", "pillow_avif"),
}
_NO_IMAGES = ("BUFR", "GRIB", "HDF5", "MPEG", "PDF")  # Pillow's names of formats for measurements, videos and documents
# Pillow's formats that are drawings, or whose first bytes also occur in other files.
_ONLY_BY_SUFFIX = (*_NO_IMAGES, "DIB", "EPS", "GBR", "WMF", "XBM", "XPM")

# TIFF tags, and their values in a raw photograph.
_SUBFILE, _PHOTOMETRIC, _DNG = 254, 262, 50706
_SENSOR = (32803, 34892)  # colour filter array, linear raw
_RAW = "it is a raw photograph: export it as TIFF, PNG or JPEG"


@cache
def pillow() -> ModuleType:
    """Load Pillow with all its decoders and those of the installed plug-ins.

    Raises:
        UserError: the extra ``images`` is missing.
    """
    image = require("PIL.Image", "images")
    image.init()
    for decoder, (_, module) in _PLUG_INS.items():
        if decoder not in image.OPEN:
            with suppress(ImportError):
                importlib.import_module(module)
    return image


def not_a_file(path: Path) -> str | None:
    """Return the kind of a path that is neither a file nor a folder, such as ``"named pipe"``; else None.

    Such a path must not be opened: a named pipe would block until another process writes to it.

    Raises:
        OSError: the path does not exist or cannot be accessed.
    """
    mode = path.stat().st_mode
    kinds = {stat.S_ISFIFO: "named pipe", stat.S_ISSOCK: "socket", stat.S_ISCHR: "device", stat.S_ISBLK: "device"}
    return next((kind for is_kind, kind in kinds.items() if is_kind(mode)), None)


def other_kind(path: Path) -> str | None:
    """Return None for an image, else the kind of the file, such as ``".txt"`` or ``"named pipe"``.

    A file is an image if its suffix or its content is that of an image. A file without a suffix that cannot be opened
    counts as an image, because it may be one.
    """
    suffix = path.suffix.lower()
    registered = pillow().registered_extensions()
    if suffix in _SUFFIXES or (suffix in registered and registered[suffix] not in _NO_IMAGES):
        return None
    named = suffix or "no suffix"
    try:
        if kind := not_a_file(path):
            return kind
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return named if suffix else None
    if not head:
        return "empty file"
    return None if recognise(head) or _opens(path) else named


def recognise(head: bytes) -> str | None:
    """Return the name of the image format that the first bytes of a file indicate; None if there is none.

    Args:
        head: the first ``HEAD`` bytes.
    """
    if head[4:8] == b"ftyp":
        box = head[8 : int.from_bytes(head[:4], "big")]
        brands = {head[8:12], *(box[i : i + 4] for i in range(8, len(box), 4))}  # bytes 12 to 15 are a version
        return next((name for name, known in _BRANDS.items() if brands & set(known)), None)
    return next((name for offset, mark, name in _SIGNATURES if head.startswith(mark, offset)), None)


def _opens(path: Path) -> bool:
    """Return whether Pillow or a plug-in recognises the content; for formats with short or vague signatures."""
    decoders = [name for name, (_, accept) in pillow().OPEN.items() if accept and name not in _ONLY_BY_SUFFIX]
    try:
        with pillow().open(path, formats=decoders):
            return True
    except (pillow().DecompressionBombError, pillow().DecompressionBombWarning):
        return True  # only an image can be rejected as too large
    except Exception:  # decoders may raise anything on other content
        return False


def obstacle(head: bytes, suffix: str) -> str:
    """Return why Pillow does not recognise a file, and what to do.

    Args:
        head: its first ``HEAD`` bytes.
        suffix: suffix of its name in lower case; empty if it has none.
    """
    if not head:
        return "it is empty"
    name = recognise(head)
    if name is None and _is_text(head) and suffix not in (".svg", ".svgz"):
        return "its content is text"
    name = name or _SUFFIXES.get(suffix)
    if name is None:
        return "its content is of no format that Pillow reads"
    if name == "raw":
        return _RAW
    decoder = _DECODERS.get(name)
    if decoder in pillow().OPEN:
        return f"it looks like {name}, but it is broken, cut off, or of a kind that Pillow does not read"
    if decoder in _PLUG_INS:
        return f"it is {name}: pip install {_PLUG_INS[decoder][0]}, or convert it to PNG or JPEG"
    return f"it is {name}, which Pillow does not read: convert it to PNG, TIFF or JPEG"


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be incomplete
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)


def check_picture(image: Image, suffix: str) -> None:
    """Check that Pillow reads the actual image of a TIFF; in most raw photographs it reads a small preview.

    Args:
        image: opened, not yet loaded.
        suffix: suffix of the file's name in lower case; empty if it has none.

    Raises:
        ValueError: the file is a raw photograph, or its first page is a preview of another page.
    """
    if image.format != "TIFF":
        return
    tags = cast("TiffImageFile", image).tag_v2
    if _SUFFIXES.get(suffix) == "raw" or _DNG in tags or tags.get(_PHOTOMETRIC) in _SENSOR:
        raise ValueError(_RAW)
    if tags.get(_SUBFILE, 0) & 1:
        raise ValueError("its first page is a preview of another, as in raw photographs: export that one")
