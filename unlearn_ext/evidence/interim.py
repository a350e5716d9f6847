"""Write ``images.csv``, until the run itself writes it; a folder that has the table is left alone."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .._utils.atomic_io import write_table
from ..data import ForgetRetain
from ..data.classes import choose
from ..data.decode import decode
from ..data.folders import find_images
from .hashing import file_sha256
from .tables import IMAGES

__all__ = ["write_images"]


def write_images(
    run: Path, images: ForgetRetain, folders: tuple[Path, Path] | None, classes: tuple[Path, str] | None
) -> None:
    """Write the table: training images of each set in the order of training, then validation images.

    Args:
        run: folder of the run.
        images: its images.
        folders: the folder to forget and the folder to retain.
        classes: the folder of class folders, and the classes to forget.
    """
    if (run / IMAGES).exists():
        return
    rows = []
    sides = _files(folders, classes)
    for side, parts in (
        ("forget", (images.forget, images.forget_validation)), ("retain", (images.retain, images.retain_validation)),
    ):  # fmt: skip
        named = _by_pixels(sides[side], images.forget) if side in sides else None
        for use, part in zip(("training", "validation"), parts, strict=True):
            for position, image in enumerate(part):
                pixels = hashlib.sha256(image.numpy().tobytes()).hexdigest()
                file, sha256 = named[pixels].pop(0) if named else (f"{side}/{use}/{position}", pixels)
                rows.append((side, "forget" if side == "forget" else "", file, sha256, use, ""))
        for left in named.values() if named else ():
            rows += [(side, "forget" if side == "forget" else "", *file, "left out", "not read") for file in left]
    write_table(run / IMAGES, ("set", "request", "file", "sha256", "used_as", "reason"), rows)


def _files(folders: tuple[Path, Path] | None, classes: tuple[Path, str] | None) -> dict[str, list[Path]]:
    if folders:
        return {side: find_images(folder) for side, folder in zip(("forget", "retain"), folders, strict=True)}
    if not classes:
        return {}
    root, chosen = classes
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    forgotten = choose(chosen, names, str(root))
    return {
        side: [path for name in names if (name in forgotten) is is_forget for path in find_images(root / name)]
        for side, is_forget in (("forget", True), ("retain", False))
    }


def _by_pixels(files: Sequence[Path], like: torch.Tensor) -> dict[str, list[tuple[str, str]]]:
    """Return the names and SHA-256 of files by the SHA-256 of their pixels at the model's size."""

    def read() -> Iterator[tuple[str, tuple[str, str]]]:
        for file in files:
            try:
                pixels = decode(file, like.shape[-1], like.shape[1]).pixels.tobytes()
                yield hashlib.sha256(pixels).hexdigest(), (str(file), file_sha256(file))
            except Exception:
                yield str(file), (str(file), file_sha256(file))

    named: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pixels, file in read():
        named[pixels].append(file)
    return named
