"""TAEF2: the tiny autoencoder for FLUX.2's latents, which `diffusers.AutoencoderTiny` cannot hold."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock

__all__ = ["TAEF2"]


class TAEF2(AutoencoderTiny):
    """``diffusers.AutoencoderTiny`` whose deepest blocks, three of the encoder and three of the decoder, have pools.

    Its images, like those of its base class, are in [-1, 1]; the original's are in [0, 1]. The configuration is that of
    the base class. Source: https://github.com/madebyollin/taesd, 2025.
    """

    # diffusers reads the names in the configuration from the signature.
    @functools.wraps(AutoencoderTiny.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        built: Any = self
        encoder, decoder, config = built.encoder.layers, built.decoder.layers, built.config
        end = len(encoder) - 1  # the last layer is the convolution to the latents
        _add_pools(encoder, range(end - config.num_encoder_blocks[-1], end), config.act_fn)
        _add_pools(decoder, range(2, 2 + config.num_decoder_blocks[0]), config.act_fn)  # after a convolution and a ReLU


class _PooledBlock(AutoencoderTinyBlock):
    """A residual block that first adds what a group norm over the whole image makes of its input [N, C, H, W]."""

    def __init__(self, channels: int, act_fn: str) -> None:
        super().__init__(channels, channels, act_fn)
        self.pool = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 4 * channels, 1, bias=False),
            torch.nn.GroupNorm(4, 4 * channels),
            torch.nn.ReLU(),
            torch.nn.Conv2d(4 * channels, channels, 1, bias=False),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images + self.pool(images))


def _add_pools(layers: Any, places: range, act_fn: str) -> None:
    for place in places:
        layers[place] = _PooledBlock(layers[place].conv[0].in_channels, act_fn)
