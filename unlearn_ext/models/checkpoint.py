"""Checkpoints that cannot be loaded, in one sentence, and pickles, which are not opened."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")


@contextmanager
def loading(class_name: str, path_or_id: str | os.PathLike[str]) -> Iterator[None]:
    """Around the calls that load a checkpoint.

    Args:
        class_name: what is loaded.
        path_or_id: folder or hub id.

    Raises:
        UserError: there is no such folder; it has no weights but pickled ones, which are not opened; or whatever the
            libraries made of it, since they raise all kinds of errors.
    """
    path = Path(path_or_id)
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    pickles = [file.name for file in files if file.suffix in _PICKLES]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise UserError(
            f"{path} holds its weights as a pickle, {pickles[0]}, which would run any code that is in it: have it "
            "written as safetensors by somebody who trusts it."
        )
    if not path.exists() and (path.is_absolute() or str(path_or_id).startswith(".") or len(path.parts) > 2):
        raise UserError(f"there is no folder {path_or_id}.")  # a hub id is never written like this
    if path.is_file():
        raise UserError(f"{path} is a file; give the folder that the model's library saved.")
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = textwrap.shorten(str(error), 240, placeholder=" …")
        raise UserError(f"no {class_name} could be loaded from {path_or_id}: {said}") from error
