"""Image-to-image models behind one protocol: I(x) = D(E(T(x))), of which only E is trained to forget."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from .._utils.hub import expanded
from ..errors import UserError
from .protocol import I2IModel, Inputs

__all__ = ["CHUNK", "FAMILIES", "I2IModel", "Inputs", "check_family", "family_class", "load", "reconstruct"]

CHUNK = 64  # images decoded at once: bounds memory

# The module here, and in it the class, that a family is; imported when it is asked for.
FAMILIES = {"vqgan": "VQGAN", "autoencoder": "AutoencoderKL", "mae": "MAE", "diffusion": "Diffusion"}


def load(family: str, path_or_id: str | os.PathLike[str]) -> I2IModel:
    """Load a model from a folder or a hub id, through its own library's ``from_pretrained``, safetensors only.

    Weights are loaded in float32, however they were saved.

    Args:
        family: ``"vqgan"``, a checkpoint of ``diffusers.VQModel``; ``"autoencoder"``, one of
            ``diffusers.AutoencoderKL``; ``"mae"``, one of ``transformers.ViTMAEForPreTraining``; or ``"diffusion"``,
            one of ``diffusers.UNet2DModel`` with a scheduler that has DDPM's noise schedule.
        path_or_id: folder that ``save_pretrained`` wrote (``~`` is the home folder), or hub id.

    Raises:
        UserError: unknown family, a checkpoint of another family or of a kind that the family does not know, one that
            lacks weights, nothing there, or a missing extra.
    """
    return family_class(family).from_pretrained(expanded(path_or_id))


def family_class(family: str) -> Any:
    """Return the class of a family's models; raises ``UserError`` where there is no such family."""
    check_family(family)
    return getattr(importlib.import_module(f".{family}", __name__), FAMILIES[family])


def check_family(family: str) -> None:
    """Raises ``UserError`` where there is no such family."""
    if family not in FAMILIES:
        raise UserError(f"there is no model family `{family}`; known: {', '.join(FAMILIES)}.")


@torch.no_grad()
def reconstruct(model: I2IModel, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """I(x) = D(E(T(x))): what a model makes of images without what the task hides.

    Args:
        model: any.
        images: float [N, C, H, W] in [-1, 1].
        task: T.

    Returns:
        float [N, C, H, W] in [-1, 1], on the CPU.
    """
    made = []
    for chunk in images.split(CHUNK):
        inputs = [part.to(model.device) for part in model.inputs(chunk, task)]
        made.append(model.decode(model.encode(*inputs), *inputs).clamp(-1, 1).cpu())
    return torch.cat(made)
