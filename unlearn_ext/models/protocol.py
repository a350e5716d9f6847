"""What unlearning needs of a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import torch

__all__ = ["I2IModel", "Inputs"]

Inputs = tuple[torch.Tensor, ...]


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
