"""Read images from folders: one folder for each set, or one folder for each class."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import UserError, first_ten
from . import formats
from .classes import Label, choose
from .prompts import prompt_file, read_prompt
from .reading import Source, read, read_all
from .sets import FORGET, ForgetRetain
from .storage import MEMORY

__all__ = ["find_images", "load_class_folders", "load_folders", "load_images"]

_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # files that Windows creates in image folders
_APPLE_LITTER = "._"  # prefix of the files that macOS creates beside others


def load_folders(
    forget: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    retain: str | os.PathLike[str] | None,
    *,
    size: int,
    channels: int,
    validation: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    memory: float = MEMORY,
    prompts: bool = False,
) -> ForgetRetain:
    """Read folders of images to forget and to retain, and their sub-folders, at the model's size.

    Images are sorted by path. A file is an image if its suffix or else its content is that of an image; other files and
    hidden files are skipped, with a warning that states their number. Transparent parts become white, the EXIF
    orientation is applied, and only the first of several frames is used, with a warning. Copies within a folder are
    kept, with a warning.

    Args:
        forget: folder of the images to forget, or a dict of such folders by the name of the request; ``~`` is the home
            folder.
        retain: folder of the images to retain; None: that set is empty, and is joined with others later.
        size: height and width in pixels of the model's images; images are resized to it with antialiasing, without
            keeping the aspect ratio.
        channels: 1 for grey, 3 for RGB.
        validation: fraction of each set held out for validation; 0: every image is used for training.
        seed: random seed of the split into training and validation images.
        skip_bad: skip images that cannot be decoded, with a warning, instead of raising.
        memory: limit in GiB; a larger set of pixels is stored in a file instead of memory.
        prompts: read the prompt of an image from the text file beside it, such as ``lion.txt`` beside ``lion.png``.

    Raises:
        UserError: a folder does not exist or has no image, images cannot be decoded (the message counts them and names
            ten), or the same image, at the model's size, is in both sets.
    """
    named = forget if isinstance(forget, Mapping) else {FORGET: forget}
    folders = [_folder(place) for place in (*named.values(), *([] if retain is None else [retain]))]
    sides = [_find(folder) for folder in folders]
    for folder, found in zip(folders, sides, strict=True):
        _check_some(folder, found)
        _mention_left_out(folder, found.left_out - _texts(found.images, prompts))
    sources = [_sources(found.images, prompts) for found in sides]
    return read(
        " / ".join(folder.name for folder in folders),
        dict(zip(named, sources, strict=False)),
        [] if retain is None else sources[-1],
        size=size,
        channels=channels,
        validation=validation,
        seed=seed,
        skip_bad=skip_bad,
        memory=memory,
        partial=retain is None or not named,
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
    prompts: bool = False,
) -> ForgetRetain:
    """Read a folder with one sub-folder for each class, as for torchvision's ``ImageFolder``.

    Images directly in ``folder`` belong to no class: they are in neither set, and a warning states their number.
    Everything else is as in :func:`load_folders`.

    Args:
        folder: the folder of classes; ``~`` is the home folder.
        forget_classes: names of the sub-folders to forget, or one string of names with commas between them; all others
            are retained. Names that look the same (equal in Unicode form NFC) are equal.
        size: height and width in pixels of the model's images.
        channels: 1 for grey, 3 for RGB.
        validation: fraction of each set held out for validation; 0: every image is used for training.
        seed: random seed of the split into training and validation images.
        skip_bad: skip images that cannot be decoded, with a warning, instead of raising.
        memory: limit in GiB; a larger set of pixels is stored in a file instead of memory.
        prompts: as for :func:`load_folders`.

    Raises:
        UserError: the folder has no such class, nothing is left to retain, a class to forget has no image, or the
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
    texts = _texts([path for found in classes.values() for path in found.images], prompts)
    _mention_left_out(root, sum((found.left_out for found in classes.values()), beside.left_out) - texts)
    _mention_unclassed(root, beside.images)
    forget, retain = (
        [path for name in names if (name in chosen) is side for path in classes[name].images] for side in (True, False)
    )
    return read(
        f"{root.name}, forgetting {', '.join(chosen)}",
        {FORGET: _sources(forget, prompts)},
        _sources(retain, prompts),
        size=size,
        channels=channels,
        validation=validation,
        seed=seed,
        skip_bad=skip_bad,
        memory=memory,
    )


def load_images(
    folder: str | os.PathLike[str],
    *,
    size: int,
    channels: int | None = None,
    skip_bad: bool = False,
    memory: float = MEMORY,
) -> torch.Tensor:
    """Read all images below a folder into one set, to train a model on them.

    Everything else is as in :func:`load_folders`.

    Args:
        folder: the folder; ``~`` is the home folder.
        size: height and width in pixels of the result.
        channels: 1 for grey, 3 for RGB; None: 3 if an image has a colour, else 1.
        skip_bad: skip images that cannot be decoded, with a warning, instead of raising.
        memory: limit in GiB; a larger set of pixels is stored in a file instead of memory.

    Returns:
        uint8 [N, C, size, size], sorted by path.

    Raises:
        UserError: the folder does not exist, has no image, or images cannot be decoded.
    """
    root = _folder(folder)
    found = _find(root)
    _check_some(root, found)
    _mention_left_out(root, found.left_out)
    sources = _sources(found.images)
    images = read_all(sources, size=size, channels=channels or 3, skip_bad=skip_bad, memory=memory)
    if not len(images):
        raise UserError(f"the folder {root} holds no image that can be read.")
    is_grey = channels is None and all(bool((image[:1] == image).all()) for image in images)
    return images[:, :1].clone() if is_grey else images


def find_images(folder: Path) -> list[Path]:
    """Return the paths of all images below a folder, sorted by their parts, independent of the file system.

    Raises:
        UserError: a folder cannot be read.
    """
    return _find(folder).images


@dataclass(frozen=True)
class _Found:
    """The images in a folder, and the number of other files.

    Attributes:
        images: paths of the images, sorted by their parts.
        left_out: number of entries of every other kind, such as ``".txt"``.
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


def _sources(images: Iterable[Path], prompts: bool = False) -> list[Source]:
    return [_source(path, prompt_file(path) if prompts else None) for path in images]


def _source(path: Path, prompt: Path | None) -> Source:
    return Source(str(path), lambda: path, None if prompt is None else read_prompt(prompt))


def _texts(images: Iterable[Path], prompts: bool) -> Counter[str]:
    """Return the number of text files beside images that are read as prompts, by their suffix."""
    files = {prompt_file(path) for path in images} - {None} if prompts else set()
    return Counter({".txt": len(files)})


def _find(folder: Path) -> _Found:
    return _sort(_entries(folder))


def _sort(entries: Iterable[Path]) -> _Found:
    """Divide files and hidden folders into images and entries that are left out."""
    found = _Found()
    for path in sorted(entries, key=lambda path: path.parts):
        what = _left_out_as(path)
        if what is None:
            found.images.append(path)
        elif what:
            found.left_out[what] += 1
    return found


def _left_out_as(path: Path) -> str | None:
    """Return the kind under which an entry is counted as left out; "" if not counted, None if it is an image."""
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
    """Yield all files and hidden folders below a folder; follow links, enter each folder once, skip hidden ones."""
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
