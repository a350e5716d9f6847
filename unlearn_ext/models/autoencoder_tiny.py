"""Tiny autoencoders, TAESD and its relatives: `diffusers.AutoencoderTiny`, and TAEF2."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint_sequential

from ..errors import UserError
from .from_diffusers import DiffusersAutoencoder, read_module, saved_class

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["AutoencoderTiny"]

_SIDE = 256  # pixels
_SEGMENTS = 4  # of the encoder's 15 layers: about the square root, which needs the least memory


class AutoencoderTiny(DiffusersAutoencoder):
    """A ``diffusers.AutoencoderTiny`` or a TAEF2 as an :class:`~unlearn_ext.models.I2IModel`.

    E is the encoder and D the decoder, which is frozen. The model has no size of its own, so image files are resized to
    the ``sample_size`` in its configuration; if there is none, 256 is written into it.

    Args:
        module: the model; wrappers such as ``torch.compile``'s are removed, evaluation mode is set, and everything
            except E is frozen.

    Raises:
        UserError: as for :class:`~unlearn_ext.models.from_diffusers.DiffusersAutoencoder`; or the decoder does not
            enlarge as much as the encoder reduces.
    """

    family = "autoencoder"
    class_name = "AutoencoderTiny"
    class_names = ("AutoencoderTiny", "TAEF2")  # that config.json may name

    def __init__(self, module: ModelMixin) -> None:
        super().__init__(module)
        config = self.module.config
        reduced = 2 ** (len(config.encoder_block_out_channels) - 1)
        enlarged = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
        if reduced != enlarged:
            raise UserError(
                f"the encoder reduces images {reduced} times and the decoder enlarges them {enlarged} times: give a "
                "model that returns images of the size that it takes."
            )
        if config.get("sample_size") is None:
            self.module.register_to_config(sample_size=_SIDE)
        self._segments = 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents [N, latent_channels, h, w] of images [N, C, H, W] in [-1, 1]."""
        if self._segments and torch.is_grad_enabled():
            layers = self.module.encoder.layers
            return checkpoint_sequential(layers, self._segments, images.add(1).div(2), use_reentrant=False)
        return self.module.encode(images).latents

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, H, W] of latents [N, latent_channels, h, w]; the inputs are ignored."""
        return self.module.decode(latents).sample

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the encoder."""
        return list(self.module.encoder.parameters())

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes: less memory, about a third more time.

        The encoder of diffusers does not scale its images to [0, 1] when it checkpoints by itself, so it does not.
        """
        self._segments = _SEGMENTS

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> AutoencoderTiny:
        """Load a model from a folder or a hub id; only safetensors files, because a pickle can run code.

        Raises:
            UserError: the checkpoint does not exist, is of another class or lacks weights; or an extra is missing.
        """
        with _unexpected_allowed():
            return cls(read_module(path_or_id, cls.family, saved_class(path_or_id, cls.class_name)))


@contextmanager
def _unexpected_allowed() -> Iterator[None]:
    """Silence the warning that a class ignores entries of its configuration: ``sample_size`` is used here."""
    logger = logging.getLogger("diffusers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
