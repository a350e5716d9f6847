"""Image-to-image models behind one protocol: I(x) = D(E(T(x))), of which only E is trained to forget."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol

import torch

from .._utils.hub import expanded
from ..errors import UserError

Inputs = tuple[torch.Tensor, ...]

CHUNK = 64  # images decoded at once: bounds memory

# The module here, and in it the class, that a family is; imported when it is asked for.
FAMILIES = {"vqgan": "VQGAN", "autoencoder": "AutoencoderKL", "mae": "MAE", "diffusion": "Diffusion"}


class I2IModel(Protocol):
    """What unlearning needs of a model.

    Attributes:
        family: name of the family, for :func:`load`.
        channels: of the images it takes, 1 or 3.
        size: side in pixels of the square images it was made for, to which files are resized; reading it raises
            ``UserError`` where the checkpoint gives no such side.
        device: where its parameters are.
        random: whether E is given random numbers beside the image, as a diffusion model is.
        module: all of its parameters, of a class of its own library; for ``.to(device)`` and the like.
    """

    family: str
    channels: int
    size: int
    device: torch.device
    random: bool
    module: torch.nn.Module

    def inputs(self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0) -> Inputs:
        """What E is given for images [N, C, H, W] in [-1, 1] under a task: tensors [N, ...].

        The first are images, of which E sees no more than the task leaves; put noise in their place, and E sees noise
        as it saw them, and nothing of them. Others say how they are seen, where the family has a mask as an input of
        its own, or are random: then the same image and the same number of the draw give the same ones.
        """

    def encode(self, *inputs: torch.Tensor) -> torch.Tensor:
        """E: inputs to latents [N, ...], differentiable in the encoder's parameters."""

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """D: latents [N, ...], and the inputs they are of, to images [N, C, H, W], about [-1, 1], not clipped."""

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of E, in a fixed order; all others are frozen."""

    def enable_gradient_checkpointing(self) -> None:
        """From now on, E keeps less in training and computes it again: less memory, about a third more time."""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that the model's own library loads."""


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
