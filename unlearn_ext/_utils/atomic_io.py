"""Files and folders that are there as a whole or not at all, whatever ends the process and whenever."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

__all__ = [
    "RECORD",
    "check_encodable",
    "file_name",
    "remove",
    "save_file",
    "save_folder",
    "saved_files",
    "tidy",
    "told",
    "write_arrays",
    "write_atomically",
    "write_table",
    "write_text",
]

RECORD = ".unlearn_ext.json"  # in a folder that was saved: the paths of its files, relative to it
# How the names end of what is not whole yet, and of what was there before; nobody's own files are named like this.
_UNFINISHED, _REPLACED = ".unlearn_ext.part", ".unlearn_ext.old"

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "make it writable or choose another folder",
    errno.EACCES: "make it writable or choose another folder",
    errno.EPERM: "make it writable or choose another folder",
    errno.EEXIST: "choose another folder",
    errno.ENOTDIR: "choose another folder",
    errno.ENOENT: "see whether its disk is still there",
}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in place of what is there: nobody ever sees half of it, not even after the power failed.

    Raises:
        UserError: it cannot be written; what was there is as it was.
    """
    save_file(path, lambda place: place.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; as :func:`write_atomically`.

    A file name may hold bytes that are not UTF-8, which Python keeps as lone surrogates. They are written as escapes,
    such as ``\\udce9``. In JSON this is the escape of that very surrogate, so the name is read back unchanged.
    """
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def save_file(path: Path, save: Callable[[Path], object]) -> None:
    """As :func:`write_atomically`, by a function that writes the file at the place that it is given.

    That is in a folder of its own, for some libraries write a file beside it first, which a kill would leave there.
    """
    unfinished = _beside(path, _UNFINISHED)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.mkdir(exist_ok=True)
            whole = unfinished / path.name
            save(whole)
            _sync(whole)
            whole.replace(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _sync(path.parent)


def write_table(path: Path, names: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, numbers at full precision; as :func:`write_atomically`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed NumPy archive; as :func:`write_atomically`."""
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    write_atomically(path, archive.getvalue())


def file_name(text: str) -> str:
    """A text as the name of a file in its folder, whatever the text holds."""
    return re.sub(r"[^\w.+-]+", "-", text)


def save_folder(folder: Path, save: Callable[[Path], None], *, replace: bool) -> None:
    """Write a folder, and in it ``RECORD``, the list of its files.

    Args:
        folder: its place.
        save: writes it, at the place that it is given.
        replace: what is there. Else it stays: of two processes at once, the first to finish wins.

    Raises:
        UserError: it cannot be written; what was there is as it was.
    """
    unfinished, replaced = _beside(folder, _UNFINISHED), _beside(folder, _REPLACED)
    with told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process that had the same number
        try:
            save(unfinished)
            files = sorted(str(path.relative_to(unfinished)) for path in unfinished.rglob("*") if path.is_file())
            (unfinished / RECORD).write_text(json.dumps(files), encoding="utf-8")
            for path in (*unfinished.rglob("*"), unfinished):
                _sync(path)
            if replace and folder.exists():
                folder.rename(replaced)  # not removed before the new one is in its place
            _rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            _settle(replaced, folder)
        _sync(folder.parent)


def saved_files(folder: Path) -> set[Path] | None:
    """Return the files that :func:`save_folder` wrote into a folder, ``RECORD`` included; None if it wrote none."""
    try:
        names = [Path(name) for name in json.loads((folder / RECORD).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None
    if any(name.is_absolute() or ".." in name.parts for name in names):
        return None  # not written by save_folder
    return {folder / name for name in (*names, RECORD)}


def remove(files: Iterable[Path], root: Path) -> None:
    """Remove files below a folder, each ``RECORD`` after the files that it lists, and folders that are empty then.

    Raises:
        UserError: one cannot be removed.
    """
    for file in sorted(files, key=lambda file: file.name == RECORD):
        with told(file):
            file.unlink(missing_ok=True)
        for folder in file.relative_to(root).parents[:-1]:
            try:
                (root / folder).rmdir()
            except OSError:  # something else is in it
                break


def tidy(folder: Path) -> None:
    """Remove what killed processes had not finished writing into a folder, and put back what they had moved aside."""
    for path in folder.glob(f"*.*{_UNFINISHED}"):
        shutil.rmtree(path)
    for path in folder.glob(f"*.*{_REPLACED}"):
        name, _process = path.name.removesuffix(_REPLACED).rsplit(".", 1)
        _settle(path, folder / name)


def check_encodable(path: str | os.PathLike[str]) -> None:
    """Raise ``UserError`` where a path is not UTF-8: safetensors writes models to such a path, but cannot read them."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path {path} is not UTF-8, so models could not be loaded from it: rename it or choose another folder."
        ) from None


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Where writing fails inside, one sentence says what could not be written, why, and what to do."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        remedy = _REMEDIES.get(number, "mend that")
        raise UserError(
            f"{path} cannot be written: {os.strerror(number)}; {remedy} and give the same command again, a run's with "
            "--resume to go on where it was."
        ) from error


def _number(error: Exception) -> int | None:
    """Of the system's error, which safetensors only puts into words."""
    if isinstance(error, OSError):
        return error.errno
    named = re.search(r"\(os error (\d+)\)", str(error))
    return int(named[1]) if named else None


def _rename(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}{ending}")


def _settle(replaced: Path, folder: Path) -> None:
    """Remove what was moved aside if its successor is in place, else put it back."""
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(folder)


def _sync(path: Path) -> None:
    """Onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
