"""Read images in folders: one folder for each side, or one for each class."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError, first_ten
from . import formats
from .classes import Label, choose
from .reading import Source, read
from .sets import ForgetRetain
from .storage import MEMORY

__all__ = ["find_images", "load_class_folders", "load_folders"]

_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # what Windows leaves in folders of photographs
_APPLE_LITTER = "._"  # how the names begin of what macOS puts beside each file


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
    """Read two folders of images, and the folders in them, at the model's size.

    The order is that of the paths. Files are images by their suffix or, where it is none of an image, by their content;
    others are left out, and so is what is hidden, with a warning that counts them. Transparent parts are laid on white,
    EXIF orientation is followed, and of several frames the first is taken, with a warning. Copies within a folder are
    kept, with a warning.

    Args:
        forget: folder of the images to forget; ``~`` is the home folder.
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
    folders = [_folder(place) for place in (forget, retain)]
    sides = [_find(folder) for folder in folders]
    for folder, found in zip(folders, sides, strict=True):
        _check_some(folder, found)
        _mention_left_out(folder, found.left_out)
    return read(
        " / ".join(folder.name for folder in folders),
        *(_sources(found.images) for found in sides),
        size=size,
        channels=channels,
        validation=validation,
        seed=seed,
        skip_bad=skip_bad,
        memory=memory,
    )


def load_class_folders(
    folder: str | os.PathLike[str],
    forget_classes: str | Sequence[Label],
    *,
    size: int,
    channels: int,
    validation: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    memory: float = MEMORY,
) -> ForgetRetain:
    """Read a folder with one sub-folder for each class, as torchvision's ``ImageFolder`` has it.

    Images beside the sub-folders belong to no class: they are in neither set, and a warning counts them. All else is as
    in :func:`load_folders`.

    Args:
        folder: the folder of classes; ``~`` is the home folder.
        forget_classes: names of the sub-folders to forget, or one text of names with commas between them, as it is
            typed; all others are retained. Names are equal if they look the same (in Unicode's form NFC).
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
    root = _folder(folder)
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not _is_hidden(path))
    if not names:
        raise UserError(f"the folder {root} has no sub-folders: a folder of classes has one for each.")
    chosen = choose(forget_classes, names, str(root))
    classes = {name: _find(root / name) for name in names}
    for name in chosen:
        _check_some(root / name, classes[name])
    beside = _sort(path for path in root.iterdir() if path.name not in classes)
    _mention_left_out(root, sum((found.left_out for found in classes.values()), beside.left_out))
    _mention_unclassed(root, beside.images)
    forget, retain = (
        [path for name in names if (name in chosen) is side for path in classes[name].images] for side in (True, False)
    )
    return read(
        f"{root.name}, forgetting {', '.join(chosen)}",
        _sources(forget),
        _sources(retain),
        size=size,
        channels=channels,
        validation=validation,
        seed=seed,
        skip_bad=skip_bad,
        memory=memory,
    )


def find_images(folder: Path) -> list[Path]:
    """Return the paths of all images below a folder, sorted by their parts, whatever the file system's order.

    Raises:
        UserError: a folder cannot be read.
    """
    return _find(folder).images


@dataclass(frozen=True)
class _Found:
    """What lies in a folder.

    Attributes:
        images: their paths, sorted by their parts.
        left_out: how many there are of every other kind, such as ``".txt"``.
    """

    images: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def _folder(place: str | os.PathLike[str]) -> Path:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}.")
    return folder


def _check_some(folder: Path, found: _Found) -> None:
    if not found.images:
        more = f"; it holds {_counts(found.left_out)}" if found.left_out else ""
        raise UserError(f"the folder {folder} holds no image (nor do the folders in it){more}.")


def _sources(images: Iterable[Path]) -> list[Source]:
    return [_source(path) for path in images]


def _source(path: Path) -> Source:
    return Source(str(path), lambda: path)


def _find(folder: Path) -> _Found:
    return _sort(_entries(folder))


def _sort(entries: Iterable[Path]) -> _Found:
    """Sort files, and hidden folders, into images and what is left out."""
    found = _Found()
    for path in sorted(entries, key=lambda path: path.parts):
        what = _left_out_as(path)
        if what is None:
            found.images.append(path)
        elif what:
            found.left_out[what] += 1
    return found


def _left_out_as(path: Path) -> str | None:
    """Return what a file or a hidden folder is counted as: empty if as nothing, None if it is an image to be used."""
    if path.name.lower() in _LITTER or path.name.startswith(_APPLE_LITTER):
        return ""
    if not _is_hidden(path):
        return formats.other_kind(path)
    if path.is_dir():
        return "hidden folder"
    return "hidden image" if formats.other_kind(path) is None else ""


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _entries(folder: Path) -> Iterator[Path]:
    """Yield all files, and hidden folders, which are not entered; linked folders are, and every folder once."""
    entered = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (Path(place, name) for name in files)
        yield from (Path(place, name) for name in folders if name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _mention_left_out(folder: Path, left_out: Counter[str]) -> None:
    if left_out:
        many = left_out.total()
        start = f"1 entry below {folder} is" if many == 1 else f"{many} entries below {folder} are"
        warnings.warn(f"{start} left out as hidden or no image: {_counts(left_out)}.", stacklevel=3)


def _counts(left_out: Counter[str]) -> str:
    kinds = [f"{kind} ({count})" for kind, count in left_out.most_common()]
    return ", ".join(kinds[:10]) + (f" and {len(kinds) - 10} more kinds" if len(kinds) > 10 else "")


def _mention_unclassed(folder: Path, images: Sequence[Path]) -> None:
    if images:
        many = "1 image lies" if len(images) == 1 else f"{len(images)} images lie"
        names = first_ten([path.name for path in images])
        warnings.warn(f"{many} in {folder} itself, in no class, and so in neither set:{names}", stacklevel=3)
