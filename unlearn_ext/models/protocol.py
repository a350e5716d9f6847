"""The interface between unlearning and models."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import torch

__all__ = ["I2IModel", "Inputs"]

Inputs = tuple[torch.Tensor, ...]


class I2IModel(Protocol):
    """A model that can be unlearned. Its properties may be plain attributes."""

    @property
    def family(self) -> str:
        """Name of the family, as in :func:`load`."""

    @property
    def channels(self) -> int:
        """Number of image channels, 1 or 3."""

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model was made for; image files are resized to it.

        Raises:
            UserError: the checkpoint does not define a size.
        """

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""

    @property
    def random(self) -> bool:
        """Whether the inputs of E contain random numbers, as in a diffusion model."""

    @property
    def module(self) -> torch.nn.Module:
        """All parameters, in a module of the model's own library; for ``.to(device)`` and the like."""

    def inputs(self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0) -> Inputs:
        """Return the inputs of E for images [N, C, H, W] in [-1, 1] under a task: tensors [N, ...].

        The first tensor is the images, of which E uses only what the task leaves visible; replacing it with noise
        must give the encoder the same mask and no image content. The other tensors, if any, are a mask or random
        numbers. Random numbers depend only on the image and on ``draw``.
        """

    # To type checkers, `*Any, **Any` is any signature: the tensors that `inputs` returns depend on the family.
    def encode(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Apply E: return the latents [N, ...] of the inputs, differentiable in the encoder's parameters."""

    def decode(self, latents: torch.Tensor, *inputs: Any, **named: Any) -> torch.Tensor:
        """Apply D: return images [N, C, H, W] of latents [N, ...] and their inputs; about [-1, 1], not clipped."""

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of E in a fixed order; all others are frozen."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes: less memory, about a third more time."""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the model to a folder that its own library can load."""
