"""The folder that a command writes one model to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .._utils.atomic_io import check_encodable, saved_files, user_errors
from ..errors import UserError

__all__ = ["check_model_folder"]


def check_model_folder(folder: Path, force: bool) -> None:
    """Check that a model may be written to a folder: it is new or empty, or holds only a model of ours and ``force``.

    Raises:
        UserError: the folder contains a model and ``force`` is false, it contains other files, or it cannot be written.
    """
    check_encodable(folder)
    with user_errors(folder):  # now rather than after the training
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    ours = (saved_files(folder) if folder.is_dir() else None) or set()
    if not ours or any(path not in ours for path in folder.rglob("*") if not path.is_dir()):
        raise UserError(f"{folder} exists and contains other files than a model of ours: choose another folder.")
    if not force:
        raise UserError(f"{folder} already contains a model: choose another folder, or give --force to replace it.")
