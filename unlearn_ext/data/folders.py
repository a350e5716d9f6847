"""Images in folders: one folder a side, or one a class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import UserError, require
from .reading import Source, read
from .sets import ForgetRetain, check_classes
from .storage import MEMORY

# Images that Pillow needs a plug-in for, or cannot read: they must not be overlooked.
_ALSO_IMAGES = (".heic", ".heif", ".avif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf",
                ".rw2")  # fmt: skip
_NO_IMAGES = ("BUFR", "GRIB", "HDF5", "MPEG", "PDF")  # suffixes that Pillow knows of measurements, films and documents
_SIGNED = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000")  # known by their first bytes, whatever the suffix


def load_folders(
    forget: str | os.PathLike[str],
    retain: str | os.PathLike[str],
    *,
    size: int,
    channels: int,
    validation: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    memory: float = MEMORY,
) -> ForgetRetain:
    """Two folders of images (searched with the folders in them), brought to the model's size.

    The order is that of the paths. Files are images by their suffix or, where it is none of an image, by their content;
    others are ignored, and so is what is hidden. Transparent parts are laid on white, EXIF orientation is followed, and
    of several frames the first is taken, with a warning. Copies within a folder are kept, with a warning.

    Args:
        forget: folder of the images to forget.
        retain: folder of the images to retain.
        size: side in pixels that the model works at; images are resized to it, antialiased, without keeping the aspect.
        channels: 1 for grey, 3 for RGB.
        validation: share of each side held out.
        seed: of the division into training and validation part.
        skip_bad: leave images that cannot be decoded out, with a warning, rather than stop.
        memory: GiB of pixels past which a set lies in a file.

    Raises:
        UserError: a folder is missing or holds no image, images cannot be decoded (all are counted, ten are named), or
            the same picture, at the model's size, is in both sets.
    """
    sides = [_sources(Path(folder)) for folder in (forget, retain)]
    name = f"{Path(forget).name} / {Path(retain).name}"
    return read(
        name, *sides, size=size, channels=channels, validation=validation, seed=seed, skip_bad=skip_bad, memory=memory
    )


def load_class_folders(
    folder: str | os.PathLike[str],
    forget_classes: Sequence[str],
    *,
    size: int,
    channels: int,
    validation: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    memory: float = MEMORY,
) -> ForgetRetain:
    """A folder with one sub-folder a class, as torchvision's ``ImageFolder`` has it.

    Images beside the sub-folders belong to no class and are not used. All else is as in :func:`load_folders`.

    Args:
        folder: the folder of classes.
        forget_classes: names of the sub-folders to forget; all others are retained.
        size: side in pixels that the model works at.
        channels: 1 for grey, 3 for RGB.
        validation: share of each side held out.
        seed: of the division into training and validation part.
        skip_bad: leave images that cannot be decoded out, with a warning, rather than stop.
        memory: GiB of pixels past which a set lies in a file.

    Raises:
        UserError: the folder has no such class, nothing is left to retain, a class to forget holds no image, or the
            images cannot be used.
    """
    folder = Path(folder)
    _check_folder(folder)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(f"the folder {folder} has no sub-folders: a folder of classes has one for each.")
    check_classes(forget_classes, classes, str(folder))
    forget = [source for name in classes if name in forget_classes for source in _sources(folder / name)]
    retain = [_source(path) for name in classes if name not in forget_classes for path in _find(folder / name)]
    name = f"{folder.name}, forgetting {', '.join(forget_classes)}"
    return read(
        name,
        forget,
        retain,
        size=size,
        channels=channels,
        validation=validation,
        seed=seed,
        skip_bad=skip_bad,
        memory=memory,
    )


def _sources(folder: Path) -> list[Source]:
    """The images of a folder that must have some."""
    _check_folder(folder)
    sources = [_source(path) for path in _find(folder)]
    if not sources:
        raise UserError(f"the folder {folder} holds no image (nor do the folders in it).")
    return sources


def _source(path: Path) -> Source:
    return Source(str(path), lambda: path)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}.")


def _find(folder: Path) -> list[Path]:
    """All images below a folder, sorted by the parts of their paths, whatever the file system's order."""
    return sorted(filter(_is_image, _files(folder)), key=lambda path: path.parts)


def _files(folder: Path) -> Iterator[Path]:
    """All files that are not hidden; linked folders are entered too, and every folder once."""
    entered = set()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error


def _is_image(path: Path) -> bool:
    pillow = require("PIL.Image", "images")
    suffix = path.suffix.lower()
    known = pillow.registered_extensions().get(suffix)
    if known in _NO_IMAGES:
        return False
    return known is not None or suffix in _ALSO_IMAGES or _has_signature(path)


def _has_signature(path: Path) -> bool:
    pillow = require("PIL.Image", "images")
    try:
        with pillow.open(path, formats=[name for name in _SIGNED if name in pillow.OPEN]):
            return True
    except Exception:  # not an image, whatever it made of the decoders
        return False
