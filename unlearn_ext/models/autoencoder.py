"""Autoencoders: `diffusers.AutoencoderKL` (Kingma and Welling, arXiv 1312.6114), and any pair of modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import UserError, require
from .adopt import adopt
from .from_diffusers import DiffusersAutoencoder

if TYPE_CHECKING:
    from typing_extensions import Self

_FILES = ("encoder.safetensors", "decoder.safetensors")


class AutoencoderKL(DiffusersAutoencoder):
    """A ``diffusers.AutoencoderKL`` as an :class:`~unlearn_ext.models.I2IModel`.

    E is the encoder with ``quant_conv``, up to the mean of the latent distribution. The part of its last layer that
    gives the variance keeps its weights, and no objective watches what they make of the layers below.
    D is ``post_quant_conv`` and the decoder; it is frozen.

    Args:
        module: the model; put in evaluation mode, and all but E frozen.

    Raises:
        UserError: the module is not an ``AutoencoderKL``, or takes neither one nor three channels.
    """

    family = "autoencoder"
    class_name = "AutoencoderKL"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents [N, latent_channels, h, w], not scaled, of images [N, C, H, W] in [-1, 1]."""
        return self.module.encode(images).latent_dist.mean

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] of latents [N, latent_channels, h, w]; the inputs are not needed."""
        return self.module.decode(latents).sample

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> Self:
        """From a folder or a hub id; safetensors only, since a pickle runs code.

        Raises:
            UserError: nothing there, a checkpoint of another class, a pair of modules, or a missing extra.
        """
        if all((Path(path_or_id) / name).is_file() for name in _FILES):
            raise UserError(
                f"{path_or_id} holds the weights of a pair of modules, whose classes only you know: build both, and "
                "read each file with safetensors.torch.load_model."
            )
        return super().from_pretrained(path_or_id)


class Autoencoder:
    """Any encoder and decoder as an :class:`~unlearn_ext.models.I2IModel`.

    Args:
        encoder: E, from images [N, C, S, S] in [-1, 1] to latents [N, ...]; put in evaluation mode.
        decoder: D, from latents [N, ...] to images [N, C, S, S]; put in evaluation mode and frozen.
        channels: of the images, 1 or 3.
        size: S, their side in pixels.

    Raises:
        UserError: neither one nor three channels, or an encoder without parameters or sharing some with the decoder.
    """

    family = "autoencoder"
    random = False

    def __init__(self, encoder: torch.nn.Module, decoder: torch.nn.Module, *, channels: int, size: int) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.module = torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self.channels, self.size = channels, size
        trained, frozen = set(encoder.parameters()), set(decoder.parameters())
        if not trained:
            raise UserError("the encoder has no parameters, so nothing can be unlearned.")
        if trained & frozen:
            raise UserError("encoder and decoder share parameters; the decoder is to stay as it is, so they must not.")
        adopt(self)

    @property
    def device(self) -> torch.device:
        return self.encoder_parameters()[0].device

    def inputs(
        self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0
    ) -> tuple[torch.Tensor]:
        """The corrupted images, float [N, C, H, W]."""
        return (task(images),)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents [N, ...] of images [N, C, S, S] in [-1, 1]."""
        return self.encoder(images)

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Images [N, C, S, S] of latents [N, ...]; the inputs are not needed."""
        return self.decoder(latents)

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.encoder.parameters())

    def enable_gradient_checkpointing(self) -> None:
        """Raises ``UserError``: only you know where this encoder may be cut."""
        raise UserError(
            "gradient checkpointing of one's own encoder is written in its forward, by torch.utils.checkpoint."
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the weights as ``encoder.safetensors`` and ``decoder.safetensors``, and nothing of the classes.

        Whoever loads them must know these: build both modules, and read each file into its own with
        ``safetensors.torch.load_model``.
        """
        save_model = require("safetensors.torch", "images").save_model
        Path(folder).mkdir(parents=True, exist_ok=True)
        for module, name in zip((self.encoder, self.decoder), _FILES, strict=True):
            save_model(module, str(Path(folder) / name))
