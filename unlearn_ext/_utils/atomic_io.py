"""Atomic writing of files and folders: a reader never sees a partial result, even after a crash."""

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

RECORD = ".unlearn_ext.json"  # file in each saved folder: the list of its files, as relative paths
# Suffixes of unfinished outputs and of the old outputs that they replace; no user file ends like this.
_UNFINISHED, _REPLACED = ".unlearn_ext.part", ".unlearn_ext.old"

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "make it writable or choose another folder",
    errno.EACCES: "make it writable or choose another folder",
    errno.EPERM: "make it writable or choose another folder",
    errno.EEXIST: "choose another folder",
    errno.ENOTDIR: "choose another folder",
    errno.ENOENT: "check that its disk is still connected",
}


def write_atomically(path: Path, content: bytes) -> None:
    """Write or replace a file; no process ever sees a part of it, even after a power failure.

    Raises:
        UserError: the file cannot be written; an existing file is unchanged.
    """
    save_file(path, lambda place: place.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    r"""Write a text file in UTF-8, as :func:`write_atomically` does.

    A text may contain lone surrogates, which Python uses for bytes of file names that are not UTF-8. They are written
    as escapes, such as ``\udce9``. JSON reads this escape as the same surrogate, so the name is unchanged.
    """
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def save_file(path: Path, save: Callable[[Path], object]) -> None:
    """Write a file as :func:`write_atomically` does, with a function that writes it to a given path.

    The path is in a temporary folder. Some libraries first write another file beside it, which would remain if the
    process is killed.
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
    """Write a CSV file with numbers at full precision, as :func:`write_atomically` does."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed NumPy archive, as :func:`write_atomically` does."""
    archive = io.BytesIO()
    named: Mapping[str, Any] = arrays  # not ndarray: numpy's stub would take each for the option `allow_pickle`
    np.savez_compressed(archive, **named)
    write_atomically(path, archive.getvalue())


def file_name(text: str) -> str:
    """Return a file name for a text: characters other than letters, digits and ``_.+-`` become hyphens."""
    return re.sub(r"[^\w.+-]+", "-", text)


def save_folder(folder: Path, save: Callable[[Path], None], *, replace: bool) -> None:
    """Write a folder atomically, with ``RECORD``, the list of its files, in it.

    Args:
        folder: path of the folder.
        save: function that writes the folder to a given path.
        replace: whether to replace an existing folder. If not, the existing folder stays; of two processes that write
            at the same time, the first to finish wins.

    Raises:
        UserError: the folder cannot be written; an existing folder is unchanged.
    """
    unfinished, replaced = _beside(folder, _UNFINISHED), _beside(folder, _REPLACED)
    with told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process with the same id
        try:
            save(unfinished)
            files = sorted(str(path.relative_to(unfinished)) for path in unfinished.rglob("*") if path.is_file())
            (unfinished / RECORD).write_text(json.dumps(files), encoding="utf-8")
            for path in (*unfinished.rglob("*"), unfinished):
                _sync(path)
            if replace and folder.exists():
                folder.rename(replaced)  # removed only once the new folder is in place
            _rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            _settle(replaced, folder)
        _sync(folder.parent)


def saved_files(folder: Path) -> set[Path] | None:
    """Return the files in a folder that :func:`save_folder` wrote, ``RECORD`` included; None for other folders."""
    try:
        names = [Path(name) for name in json.loads((folder / RECORD).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None
    if any(name.is_absolute() or ".." in name.parts for name in names):
        return None  # not written by save_folder
    return {folder / RECORD, *(folder / name for name in names)}


def remove(files: Iterable[Path], root: Path) -> None:
    """Remove files below a folder, each ``RECORD`` last, and the folders that become empty.

    Raises:
        UserError: a file cannot be removed.
    """
    for file in sorted(files, key=lambda file: file.name == RECORD):
        with told(file):
            file.unlink(missing_ok=True)
        for folder in file.relative_to(root).parents[:-1]:
            try:
                (root / folder).rmdir()
            except OSError:  # not empty
                break


def tidy(folder: Path) -> None:
    """Remove unfinished outputs of killed processes from a folder, and restore the old outputs that they moved."""
    for path in folder.glob(f"*.*{_UNFINISHED}"):
        shutil.rmtree(path)
    for path in folder.glob(f"*.*{_REPLACED}"):
        name, _process = path.name.removesuffix(_REPLACED).rsplit(".", 1)
        _settle(path, folder / name)


def check_encodable(path: str | os.PathLike[str]) -> None:
    """Raise ``UserError`` if a path is not UTF-8: safetensors can write models to such a path, but not read them."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path {path} is not UTF-8, so models could not be loaded from it: rename it or choose another folder."
        ) from None


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Convert OSError into UserError with path, cause and remedy."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        remedy = _REMEDIES.get(number, "fix this")
        raise UserError(
            f"{path} cannot be written: {os.strerror(number)}; {remedy} and repeat the command, with --resume to "
            "continue a run."
        ) from error


def _number(error: Exception) -> int | None:
    """Return the errno of an error, or None; safetensors gives it only in the message."""
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
    """Remove the replaced folder if the new one is in place; else restore it."""
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(folder)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
