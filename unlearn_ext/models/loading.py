"""Say in one sentence why a checkpoint cannot be loaded; pickles are not opened, and no weight is made up."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._utils.atomic_io import check_encodable
from .._utils.hub import check_reachable
from ..errors import UserError

__all__ = ["check_complete", "loading", "variant"]

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")


@contextmanager
def loading(class_name: str, path_or_id: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is loaded into one sentence.

    Args:
        class_name: what is loaded.
        path_or_id: folder or hub id.

    Raises:
        UserError: there is no such folder; its path is not UTF-8; it has no weights but pickled ones, which are not
            opened; or whatever the libraries made of it, since they raise all kinds of errors.
    """
    check_reachable(path_or_id)
    path = Path(path_or_id).expanduser()
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    pickles = [file.name for file in files if file.suffix in _PICKLES]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise UserError(
            f"{path} holds its weights as a pickle, {pickles[0]}, which would run any code that is in it: have it "
            "written as safetensors by somebody who trusts it."
        )
    if path.is_file():
        raise UserError(f"{path} is a file; give the folder that the model's library saved.")
    check_encodable(path)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = textwrap.shorten(str(error), 240, placeholder=" …")
        raise UserError(f"no {class_name} could be loaded from {path_or_id}: {said}") from error


def variant(path_or_id: str | os.PathLike[str]) -> str | None:
    """Return the variant, such as ``fp16``, that all weights of a folder are of; None where they are of none.

    The libraries load ``model.fp16.safetensors`` only if the argument ``variant`` names it.
    """
    names = [path.name for path in Path(path_or_id).glob("*.safetensors")]
    variants = {name.split(".")[1].split("-")[0] if name.count(".") > 1 else None for name in names}
    return variants.pop() if len(variants) == 1 else None


def check_complete(path_or_id: str | os.PathLike[str], info: Mapping[str, Any]) -> None:
    """Check that every weight came from the checkpoint; the libraries draw at random those that did not.

    Args:
        path_or_id: folder or hub id.
        info: what ``from_pretrained(..., output_loading_info=True)`` returns beside the model.

    Raises:
        UserError: a weight is missing, or has another shape than the configuration asks for.
    """
    missing, others = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        held = f"; it holds others, such as {others[0]}" if others else ""
        raise UserError(
            f"{path_or_id} lacks {len(missing)} of the model's weights, such as {missing[0]}{held}: save the whole "
            "model, without wrappers, by its save_pretrained."
        )
    for name, saved, asked in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{path_or_id} holds {name} in the shape {list(saved)}, and its config.json asks for {list(asked)}: give "
            "the configuration that the weights were saved with."
        )
