"""VQ-GAN (Esser et al., arXiv 2012.09841): `diffusers.VQModel`."""

from __future__ import annotations

import torch

from .from_diffusers import DiffusersAutoencoder

__all__ = ["VQGAN"]


class VQGAN(DiffusersAutoencoder):
    """A ``diffusers.VQModel`` as an :class:`~unlearn_ext.models.I2IModel`.

    E is the encoder with ``quant_conv``, before quantisation, so its output is continuous and f1 and f2 have gradients.
    D is the quantiser, ``post_quant_conv`` and the decoder; it is frozen.

    Args:
        module: the model; wrappers such as ``torch.compile``'s are removed, evaluation mode is set, and everything
            except E is frozen.

    Raises:
        UserError: as for :class:`~unlearn_ext.models.from_diffusers.DiffusersAutoencoder`.
    """

    family = "vqgan"
    class_name = "VQModel"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents [N, vq_embed_dim, h, w] before quantisation of images [N, C, H, W] in [-1, 1]."""
        return self.module.encode(images).latents

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Quantise latents [N, vq_embed_dim, h, w] and return their images [N, C, H, W]; the inputs are ignored."""
        return self.module.decode(latents).sample
