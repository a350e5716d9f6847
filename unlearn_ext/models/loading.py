"""Report loading errors in one sentence; reject pickles and checkpoints with missing weights."""

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

__all__ = ["check_complete", "encoder_only", "loading", "variant"]

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")


@contextmanager
def loading(class_name: str, path_or_id: str | os.PathLike[str]) -> Iterator[None]:
    """Convert any error in loading a checkpoint into a UserError of one sentence.

    Args:
        class_name: name of the class that is loaded, for the message.
        path_or_id: folder or hub id.

    Raises:
        UserError: there is no such folder; its path is not UTF-8; all its weights are pickles, which are not opened; or
            a library raised an error of any type.
    """
    check_reachable(path_or_id)
    path = Path(path_or_id).expanduser()
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    pickles = [file.name for file in files if file.suffix in _PICKLES]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise UserError(
            f"{path} has its weights as a pickle, {pickles[0]}, and a pickle can run any code when it is loaded: if "
            "another program wrote it, give the file itself, of which only the weights are read; if not, ask somebody "
            "who trusts it to save it as safetensors."
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
    """Return the variant of all weight files in a folder, such as ``fp16``; None if they have none or differ.

    The libraries load ``model.fp16.safetensors`` only if the argument ``variant`` names it.
    """
    names = [path.name for path in Path(path_or_id).glob("*.safetensors")]
    variants = {name.split(".")[1].split("-")[0] if name.count(".") > 1 else None for name in names}
    return variants.pop() if len(variants) == 1 else None


def check_complete(path_or_id: str | os.PathLike[str], info: Mapping[str, Any]) -> None:
    """Check that every weight was in the checkpoint; the libraries initialize missing weights at random.

    Args:
        path_or_id: folder or hub id.
        info: loading info that ``from_pretrained(..., output_loading_info=True)`` returns with the model.

    Raises:
        UserError: a weight is missing, or its shape differs from the configuration's.
    """
    missing, others = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        held = f"; it has others, such as {others[0]}" if others else ""
        raise UserError(
            f"{path_or_id} lacks {len(missing)} of the model's weights, such as {missing[0]}{held}: save the whole "
            "model, without wrappers, with its save_pretrained."
        )
    for name, saved, asked in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{path_or_id} has {name} with shape {list(saved)}, but its config.json asks for {list(asked)}: use the "
            "config.json that was saved with the weights."
        )


def encoder_only(path_or_id: str | os.PathLike[str]) -> UserError:
    """Return the error for a masked autoencoder without its decoder, as timm and ``mae_pretrain_*`` files have it."""
    return UserError(
        f"{path_or_id} has only the encoder of a masked autoencoder, as mae_pretrain_*.pth and the models of timm, but "
        "pictures need its decoder: get mae_visualize_vit_*.pth or mae_pretrain_vit_*_full.pth, or a folder of "
        "ViTMAEForPreTraining such as facebook/vit-mae-base."
    )
