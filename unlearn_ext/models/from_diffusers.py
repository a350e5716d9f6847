"""What the autoencoders of `diffusers` have in common: their configuration, and how they are read and written."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch

from ..errors import UserError, require
from .adopt import adopt
from .checkpoint import loading

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from typing_extensions import Self


class DiffusersAutoencoder:
    """An autoencoder of ``diffusers`` as an :class:`~unlearn_ext.models.I2IModel`, but for ``encode`` and ``decode``.

    E is the encoder with ``quant_conv``, where there is one.

    Args:
        module: the model; put in evaluation mode, and all but E frozen.

    Attributes:
        class_name: of the module, in ``diffusers``.

    Raises:
        UserError: the module is of another class, or takes neither one nor three channels.
    """

    family: ClassVar[str]
    class_name: ClassVar[str]
    random = False

    def __init__(self, module: ModelMixin) -> None:
        check_class(module, self.family, self.class_name)
        self.module = module
        self.channels = int(module.config.in_channels)
        self.size = int(module.config.sample_size)
        adopt(self)

    @property
    def device(self) -> torch.device:
        return self.module.device

    def inputs(
        self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0
    ) -> tuple[torch.Tensor]:
        """The corrupted images, float [N, C, H, W]."""
        return (task(images),)

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        quant_conv = self.module.quant_conv
        return [*self.module.encoder.parameters(), *(quant_conv.parameters() if quant_conv is not None else ())]

    def enable_gradient_checkpointing(self) -> None:
        self.module._supports_gradient_checkpointing = True  # VQModel's encoder is one that can; its class says no
        self.module.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and the weights as safetensors, to be loaded by the class's ``from_pretrained``."""
        self.module.save_pretrained(folder, safe_serialization=True)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> Self:
        """From a folder or a hub id; safetensors only, since a pickle runs code.

        Raises:
            UserError: nothing there, a checkpoint of another class, or a missing extra.
        """
        return cls(read_module(path_or_id, cls.family, cls.class_name))


def check_class(module: ModelMixin, family: str, class_name: str) -> None:
    """Raises ``UserError`` where a module is not of the class that its family is."""
    if not isinstance(module, getattr(require("diffusers", "images"), class_name)):
        raise UserError(f"family {family} is diffusers.{class_name}; this model is a {type(module).__name__}.")


def read_module(path_or_id: str | os.PathLike[str], family: str, class_name: str) -> ModelMixin:
    """A module of ``diffusers`` from a folder or a hub id; safetensors only.

    Raises:
        UserError: nothing there, or a checkpoint of another class.
    """
    module_class = getattr(require("diffusers", "images"), class_name)
    with loading(class_name, path_or_id):
        saved = module_class.load_config(path_or_id).get("_class_name", "another library")
        if saved != class_name:
            raise UserError(f"family {family} is diffusers.{class_name}; {path_or_id} is a checkpoint of {saved}.")
        # low_cpu_mem_usage needs the package accelerate and warns without it; these models are small.
        return module_class.from_pretrained(path_or_id, use_safetensors=True, low_cpu_mem_usage=False)
