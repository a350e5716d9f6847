"""One process at a time in a folder of runs."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from .atomic_io import told

FILE = ".lock"  # it stays: were it removed, two processes could hold locks on two files of this name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps others out of it; the system lets them in again whenever this process ends.

    Raises:
        UserError: another process is in it, or it cannot be made.
    """
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / FILE).open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is at work in {folder}: wait until it has ended, or choose another folder."
            ) from None
        except OSError:
            pass  # a file system that knows no locks
        yield
