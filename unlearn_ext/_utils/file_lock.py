"""A lock that lets one process at a time write to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, require
from .atomic_io import user_errors

__all__ = ["FILE", "locked"]

FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder and lock it against other processes; the system releases the lock if this process dies.

    Raises:
        UserError: another process has the lock, the folder cannot be created, or filelock is not installed.
    """
    filelock = require("filelock", "images")
    lock = filelock.FileLock(folder / FILE)
    with user_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"another process is using {folder}: wait until it has finished, or choose another folder."
            ) from None
        except NotImplementedError:
            pass  # the file system has no locks
    try:
        yield
    finally:
        lock.release()
