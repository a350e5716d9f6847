"""The cache folder, for downloads and pretrained models."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..errors import UserError
from .atomic_io import check_encodable

__all__ = ["cache_folder", "writable_cache_folder"]


def cache_folder() -> Path:
    """Return the cache folder, which need not exist.

    It is ``$UNLEARN_EXT_CACHE``, else ``unlearn_ext`` in ``$XDG_CACHE_HOME``, else ``~/.cache/unlearn_ext``.

    Raises:
        UserError: neither variable is set, and there is no home folder.
    """
    if chosen := os.environ.get("UNLEARN_EXT_CACHE"):
        return Path(chosen)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the XDG specification says to ignore relative paths
        return Path(shared) / "unlearn_ext"
    try:
        return Path.home() / ".cache" / "unlearn_ext"
    except RuntimeError:
        raise UserError(
            "there is no home folder to keep downloads and small models in: set UNLEARN_EXT_CACHE to a folder for them."
        ) from None


def writable_cache_folder() -> Path:
    """Create the cache folder, check that it is writable, and return it; call it before computing what it stores.

    Raises:
        UserError: there is no home folder, the cache folder cannot be written to, or its path is not UTF-8.
    """
    folder = cache_folder()
    check_encodable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be written to: {error.strerror}; set UNLEARN_EXT_CACHE to one that can."
        ) from error
    return folder
