"""The frozen parts of a pipeline, which turn images and prompts into inputs of the U-Net."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from .._utils.tensor_hash import tensors_sha256
from .freezing import check_float32
from .frozen_outputs import FrozenOutputs
from .pipelines import Kind

__all__ = ["LatentSpace"]

_PARTS = ("vae", "text_encoder", "text_encoder_2")


class LatentSpace:
    """The VAE and the text encoders of a pipeline; each image and prompt is encoded once.

    Args:
        pipeline: the pipeline; its VAE and text encoders are frozen, and moved to a device when they are needed there.
        kind: the kind of its class.

    Attributes:
        scale: pixels along a side of a latent's element.
        factor: by which latents are multiplied to have about variance 1.

    Raises:
        UserError: weights are not float32.
    """

    def __init__(self, pipeline: Any, kind: Kind) -> None:
        self._parts = [part for name in _PARTS if (part := getattr(pipeline, name, None)) is not None]
        for part in self._parts:
            check_float32(part)
            part.eval().requires_grad_(False)
        self._vae = pipeline.vae
        self.scale, self.factor = int(pipeline.vae_scale_factor), float(pipeline.vae.config.scaling_factor)
        self._latents = FrozenOutputs(self._encode, _digest)
        self._embeddings = FrozenOutputs[str](lambda prompt: _rows(kind.embed(pipeline, prompt)), str)

    def latents(self, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return the latents, float32 [N, 4, h, w] on the CPU with about variance 1, of images in [-1, 1].

        It is the mean of the VAE's distribution, so that it need not be drawn anew, and is the same in every step.
        """
        self._move(device)
        (latents,) = self._latents(images)
        return latents

    def embeddings(self, prompts: Iterable[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return what the text encoders make of prompts: float32 [N, L, D], and for SDXL a pooled one [N, P]."""
        self._move(device)
        return self._embeddings(prompts)

    def digest(self) -> str:
        """Return a digest of all weights and of ``factor``, hexadecimal."""
        weights = (tensor for part in self._parts for tensor in part.state_dict().values())
        return tensors_sha256(torch.tensor(self.factor, dtype=torch.float64), *weights)

    def _move(self, device: torch.device) -> None:
        for part in self._parts:
            if part.device != device:
                part.to(device)

    def _encode(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        latent = self._vae.encode(image[None].to(self._vae.device)).latent_dist.mode()
        return (latent[0] * self.factor,)


def _rows(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor[0] for tensor in tensors)


def _digest(image: torch.Tensor) -> bytes:
    return hashlib.blake2b(image.detach().cpu().contiguous().numpy().tobytes(), digest_size=16).digest()
