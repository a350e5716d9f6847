"""Recognise the family of a model by its content."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .._utils.hub import check_reachable, expanded
from ..errors import UserError, require
from . import doors
from .loading import encoder_only
from .pipelines import KINDS, check_kind

__all__ = ["CLASSES", "family_of"]

# The family of each class of model that a configuration may name.
CLASSES = {
    "VQModel": "vqgan",
    "AutoencoderKL": "autoencoder",
    "AutoencoderTiny": "autoencoder",
    "TAEF2": "autoencoder",
    "ViTMAEForPreTraining": "mae",
    "UNet2DModel": "diffusion",
    "MAGE": "mage",
    **dict.fromkeys(KINDS, "latent-diffusion"),
}


def family_of(path_or_id: str | os.PathLike[str], configuration: Path | None = None) -> str:
    """Return the family of a checkpoint: of a file by its weights, of a folder or a hub id by its configuration.

    Args:
        path_or_id: file, folder or hub id.
        configuration: the configuration of a file, if it is not beside it.

    Raises:
        UserError: there is no such checkpoint, or it is of no known family.
    """
    place = doors.file_in(Path(expanded(path_or_id)))
    if place.is_file():
        return doors.door_of(place, configuration).FAMILY
    check_reachable(path_or_id)
    config = _configuration(path_or_id)
    name = str(config.get("_class_name") or next(iter(config.get("architectures") or ()), ""))
    if name in CLASSES:
        return CLASSES[name]
    if "scheduler" in config:  # a pipeline
        check_kind(name, config)
    if not name and "architecture" in config:
        raise encoder_only(path_or_id)
    if name:
        raise UserError(f"{path_or_id} is a {name}, but the families are of {', '.join(CLASSES)}.")
    raise UserError(
        f"{path_or_id} does not say which class of model it is, because its config.json is missing or names none: give "
        "a folder that save_pretrained wrote, or --family."
    )


def _configuration(path_or_id: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of ``model_index.json``, else of ``config.json``; empty if there is neither."""
    find = require("transformers.utils", "images").cached_file
    for name in ("model_index.json", "config.json"):
        if found := find(path_or_id, name, _raise_exceptions_for_missing_entries=False):
            try:
                content = json.loads(Path(found).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"{name} of {path_or_id} cannot be read: {error}.") from error
            return content if isinstance(content, dict) else {}
    return {}
