"""Files and folders that are there as a whole or not at all, whatever ends the process and whenever."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

UNFINISHED = ".part"  # how the name of what is not whole yet ends

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


def save_file(path: Path, save: Callable[[Path], object]) -> None:
    """As :func:`write_atomically`, by a function that writes the file at the place that it is given.

    That is in a folder of its own, for some libraries write a file beside it first, which a kill would leave there.
    """
    unfinished = _unfinished(path)
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
    write_atomically(path, text.getvalue().encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed NumPy archive; as :func:`write_atomically`."""
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    write_atomically(path, archive.getvalue())


def file_name(text: str) -> str:
    """A text as the name of a file in its folder, whatever the text holds."""
    return re.sub(r"[^\w.+-]+", "-", text)


def save_folder(folder: Path, save: Callable[[Path], None], *, replace: bool) -> None:
    """Write a folder.

    Args:
        folder: its place.
        save: writes it, at the place that it is given.
        replace: what is there. Else it stays: of two processes at once, the first to finish wins.

    Raises:
        UserError: it cannot be written; what was there is as it was.
    """
    unfinished = _unfinished(folder)
    with told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(unfinished)
            for path in (*unfinished.rglob("*"), unfinished):
                _sync(path)
            if replace and folder.exists():
                shutil.rmtree(folder)
            _rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _sync(folder.parent)


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


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")


def _sync(path: Path) -> None:
    """Onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
