"""VQ-GAN (Esser et al., arXiv 2012.09841): `diffusers.VQModel`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from ..errors import UserError, require

if TYPE_CHECKING:
    from diffusers import VQModel


class VQGAN:
    """A ``diffusers.VQModel`` as an :class:`~unlearn_ext.models.I2IModel`.

    E is the encoder with ``quant_conv``, before quantisation: its output is continuous, so f1 and f2 have gradients.
    D is the quantiser, ``post_quant_conv`` and the decoder; it is frozen.

    Args:
        module: the model; put in evaluation mode, and all but E frozen.

    Raises:
        UserError: the module is not a ``VQModel``, or takes neither one nor three channels.
    """

    family = "vqgan"

    def __init__(self, module: VQModel) -> None:
        if not isinstance(module, require("diffusers", "images").VQModel):
            raise UserError(f"family vqgan is diffusers.VQModel; this model is a {type(module).__name__}.")
        self.module = module.eval().requires_grad_(False)
        self.channels = int(module.config.in_channels)
        self.size = int(module.config.sample_size)
        if self.channels not in (1, 3):
            raise UserError(f"the model takes images of {self.channels} channels; only 1 (grey) and 3 (RGB) are known.")
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        return self.module.device

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents [N, vq_embed_dim, h, w] before quantisation, of images [N, C, H, W] in [-1, 1]."""
        return self.module.encode(images).latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] of latents [N, vq_embed_dim, h, w], quantised first."""
        return self.module.decode(latents).sample

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        return [*self.module.encoder.parameters(), *self.module.quant_conv.parameters()]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and the weights as safetensors, to be loaded by ``VQModel.from_pretrained``."""
        self.module.save_pretrained(folder, safe_serialization=True)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> VQGAN:
        """From a folder or a hub id; safetensors only, since a pickle runs code.

        Raises:
            UserError: nothing there, a checkpoint of another class, or a missing extra.
        """
        vq_model = require("diffusers", "images").VQModel
        try:
            saved = vq_model.load_config(path_or_id).get("_class_name")
            if saved != vq_model.__name__:
                raise UserError(f"family vqgan is diffusers.VQModel; {path_or_id} is a checkpoint of {saved}.")
            # low_cpu_mem_usage needs the package accelerate and warns without it; these models are small.
            module = vq_model.from_pretrained(path_or_id, use_safetensors=True, low_cpu_mem_usage=False)
        except OSError as error:
            raise UserError(f"no VQModel could be loaded from {path_or_id}: {str(error).splitlines()[0]}") from error
        return cls(module)
