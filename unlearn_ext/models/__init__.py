"""Image-to-image models behind one protocol: I(x) = D(E(T(x))); unlearning trains only the encoder E."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._utils.hub import expanded
from ..errors import UserError
from . import doors
from .adapters import has_adapter, load_merged, unadapted
from .protocol import I2IModel, Inputs
from .recognition import family_of
from .sharding import shard, undivided

__all__ = [
    "CHUNK", "FAMILIES", "I2IModel", "Inputs", "check_family", "family_class", "family_of", "load", "load_like",
    "reconstruct", "shard",
]  # fmt: skip

CHUNK = 64  # images decoded at once; limits memory

# Each family's class, in the module of the family's name with `_` for `-`. Modules are imported on first use.
FAMILIES = {
    "vqgan": "VQGAN",
    "autoencoder": "AutoencoderKL",
    "mae": "MAE",
    "diffusion": "Diffusion",
    "mage": "MAGE",
    "latent-diffusion": "LatentDiffusion",
}


def load(
    family: str, path_or_id: str | os.PathLike[str], configuration: str | os.PathLike[str] | None = None
) -> I2IModel:
    """Load a model from a folder, a hub id or a checkpoint file; nothing that a file contains is executed.

    A folder or hub id is loaded by its own library's ``from_pretrained``, from safetensors files only. A file may have
    the layout of another program, see :mod:`unlearn_ext.models.doors`. Weights are converted to float32.

    Args:
        family: ``"vqgan"`` for a checkpoint of ``diffusers.VQModel``, ``"autoencoder"`` for
            ``diffusers.AutoencoderKL`` or ``AutoencoderTiny``, ``"mae"`` for ``transformers.ViTMAEForPreTraining``,
            ``"diffusion"`` for ``diffusers.UNet2DModel`` with a scheduler that has DDPM's noise schedule, ``"mage"``
            for a MAGE, whose class is of this package, or ``"latent-diffusion"`` for a whole pipeline of ``diffusers``
            that inpaints or edits. :func:`family_of` returns it.
        path_or_id: folder that ``save_pretrained`` wrote, checkpoint file (``~`` is the home folder), or hub id. If a
            run with an adapter wrote the folder, the adapter is merged into the weights.
        configuration: YAML or JSON file with the configuration of a checkpoint file; by default the one beside it.

    Raises:
        UserError: the family is unknown; the checkpoint does not exist, lacks weights, or is of another family or of
            an unsupported kind; or an extra is missing.
    """
    model_class, place = family_class(family), doors.file_in(Path(expanded(path_or_id)))
    beside = None if configuration is None else Path(expanded(configuration))
    if not place.is_file():
        if beside:
            raise UserError(f"{path_or_id} has its configuration in its folder: leave out the configuration {beside}.")
        read = model_class.from_pretrained
        return load_merged(place, read) if has_adapter(place) else read(expanded(path_or_id))
    door = doors.door_of(place, beside)
    if family != door.FAMILY:
        raise UserError(f"{path_or_id} is a checkpoint of family {door.FAMILY} (format {door.NAME}), not of {family}.")
    return doors.load(place, beside)


def load_like(model: I2IModel, path_or_id: str | os.PathLike[str]) -> I2IModel:
    """Load another model of a model's family, for the same prompts if the family takes prompts.

    Raises:
        UserError: as for :func:`load`.
    """
    like = undivided(unadapted(model))
    loaded: Any = load(model.family, path_or_id)
    if hasattr(like, "prompts"):
        loaded.prompts = like.prompts
    return loaded


def family_class(family: str) -> Any:
    """Return the class of a family's models; raise ``UserError`` if there is no such family."""
    check_family(family)
    return getattr(importlib.import_module(f".{family.replace('-', '_')}", __name__), FAMILIES[family])


def check_family(family: str) -> None:
    """Raise ``UserError`` if there is no such family."""
    if family not in FAMILIES:
        raise UserError(f"there is no model family `{family}`; known: {', '.join(FAMILIES)}.")


@torch.no_grad()
def reconstruct(model: I2IModel, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return I(x) = D(E(T(x))), the model's reconstruction of images that the task corrupts.

    Args:
        model: a model of any family.
        images: float [N, C, H, W] in [-1, 1].
        task: the task T.

    Returns:
        float [N, C, H, W] in [-1, 1], on the CPU.
    """
    made = []
    for chunk in images.split(CHUNK):
        inputs = [part.to(model.device) for part in model.inputs(chunk, task)]
        made.append(model.decode(model.encode(*inputs), *inputs).clamp(-1, 1).cpu())
    return torch.cat(made)
