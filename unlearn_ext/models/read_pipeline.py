"""Load a pipeline of `diffusers` in float32; no weight is missing, and no pickle is opened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, require
from .loading import check_complete, loading, variant
from .pipelines import check_kind
from .progress_bars import quiet

__all__ = ["check_vocabulary", "read_pipeline"]

_INDEX = "model_index.json"
# The components whose weights the results depend on, and their classes. Only these are checked for missing weights.
_CHECKED = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
}
_TOKENIZERS = {"tokenizer", "tokenizer_2"}
_VOCABULARIES = ("tokenizer.json", "vocab.json")


def read_pipeline(path_or_id: str | os.PathLike[str]) -> Any:
    """Load a pipeline from a folder or a hub id, and convert its weights to float32.

    Raises:
        UserError: the checkpoint does not exist, is not a supported pipeline, or a component lacks weights or has them
            only as a pickle.
    """
    diffusers = require("diffusers", "images")
    # Importing a pipeline, and building one without a safety checker, each give a message that users cannot act on.
    with loading("pipeline", path_or_id), quiet("diffusers", "transformers"):
        folder = Path(path_or_id)
        if not folder.is_dir():
            folder = Path(diffusers.DiffusionPipeline.download(os.fspath(path_or_id), use_safetensors=True))
        index = _index(folder)
        name = str(index.get("_class_name"))
        check_kind(name, index)
        for part in _TOKENIZERS & index.keys():
            check_vocabulary(folder / part)
        parts = {part: _component(folder, part, index[part]) for part in _CHECKED if part in index}
        return getattr(diffusers, name).from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False, variant=variant(folder / "unet"), **parts
        )


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / _INDEX).is_file():
        raise UserError(f"{folder} has no {_INDEX}: give the folder that the pipeline's save_pretrained wrote.")
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise UserError(f"{folder / _INDEX} does not list the components of a pipeline.")
    return index


def check_vocabulary(folder: Path) -> None:
    """Raise ``UserError`` if a tokenizer has no vocabulary: transformers would take one without words, in silence."""
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise UserError(
            f"{folder} has no vocabulary, tokenizer.json, or vocab.json and merges.txt: copy the tokenizer of the "
            "original pipeline there."
        )


def _component(folder: Path, name: str, named: Any) -> Any:
    """Load one component.

    Args:
        folder: folder of the pipeline.
        name: name of the component.
        named: its library and its class, as in ``model_index.json``.

    Raises:
        UserError: the class is not supported, or weights are missing.
    """
    library, classes = _CHECKED[name]
    if not isinstance(named, list) or len(named) != 2 or named[0] != library or named[1] not in classes:
        raise UserError(
            f"the component {name} of {folder} is {named}; family latent-diffusion needs {library}.{classes[0]}."
        )
    place = folder / name
    with loading(named[1], place):
        how: dict[str, Any] = {"dtype": torch.float32}
        if library == "diffusers":
            how = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        module, info = getattr(require(library, "images"), named[1]).from_pretrained(
            place, use_safetensors=True, variant=variant(place), output_loading_info=True, **how
        )
        check_complete(place, info)
        return module
