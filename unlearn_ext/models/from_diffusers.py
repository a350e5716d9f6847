"""Read, check and write models of `diffusers`, and what its autoencoders have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from ..errors import UserError, require
from .freezing import adopt, unwrapped
from .loading import check_complete, loading, variant
from .sides import read_sides

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from typing_extensions import Self

__all__ = ["DiffusersAutoencoder", "check_class", "check_sides", "read_module", "sample_side"]


class DiffusersAutoencoder:
    """An autoencoder of ``diffusers`` as an :class:`~unlearn_ext.models.I2IModel`, but for ``encode`` and ``decode``.

    E is the encoder with ``quant_conv``, where there is one.

    Args:
        module: the model; wrappers such as ``torch.compile``'s are taken off; put in evaluation mode, and all but E
            frozen.

    Attributes:
        class_name: of the module, in ``diffusers``.

    Raises:
        UserError: the module is of another class, takes neither one nor three channels, gives back another number of
            channels, or its ``sample_size`` is no size.
    """

    family: ClassVar[str]
    class_name: ClassVar[str]
    random = False

    def __init__(self, module: ModelMixin) -> None:
        module = unwrapped(module)
        check_class(module, self.family, self.class_name)
        self.module = module
        self.channels = int(module.config.in_channels)
        if module.config.out_channels != self.channels:
            raise UserError(
                f"the model takes images of {self.channels} channels and gives back {module.config.out_channels}; it "
                "must give back as many as it takes."
            )
        read_sides("sample_size", module.config.sample_size)
        adopt(self)

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model was made for; in Python it takes other sizes as well.

        Raises:
            UserError: its configuration gives no size, no square, or one that the model does not give back.
        """
        return sample_side(self.module)

    def inputs(
        self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0
    ) -> tuple[torch.Tensor]:
        """Return the corrupted images, float [N, C, H, W].

        Raises:
            UserError: the model would give back images of another size.
        """
        check_sides(images.shape[-2:], self.module)
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
        """Load a model from a folder or a hub id; safetensors only, since a pickle runs code.

        Raises:
            UserError: nothing there, a checkpoint of another class, one that lacks weights, or a missing extra; and as
                for the class itself.
        """
        return cls(read_module(path_or_id, cls.family, cls.class_name))


def check_class(module: ModelMixin, family: str, class_name: str) -> None:
    """Check that a module is of its family's class.

    Raises:
        UserError: it is of another class.
    """
    if not isinstance(module, getattr(require("diffusers", "images"), class_name)):
        raise UserError(f"family {family} is diffusers.{class_name}; this model is a {type(module).__name__}.")


def sample_side(module: ModelMixin) -> int:
    """Return the side in pixels of the square images that a convolutional module was made for.

    Raises:
        UserError: its configuration gives no side, no square, or one that :func:`check_sides` rejects.
    """
    sides = read_sides("sample_size", module.config.sample_size)
    if sides is None:
        raise UserError(
            "the model's configuration does not say how large its images are: write their side in pixels into its "
            'config.json, such as "sample_size": 256.'
        )
    check_sides(sides, module)
    if sides[0] != sides[1]:
        raise UserError(
            f"the model was made for images of {sides[0]}x{sides[1]} pixels, and files are read as squares only: give "
            "images of that size as tensors, in Python."
        )
    return sides[0]


def check_sides(sides: Sequence[int], module: ModelMixin) -> None:
    """Check that a convolutional module gives images back in the size in which it takes them.

    Args:
        sides: height and width of the images, in pixels.
        module: of which each block but one halves the sides.

    Raises:
        UserError: a side cannot be halved so often.
    """
    multiple = 2 ** (len(module.config.block_out_channels) - 1)
    if any(side % multiple for side in sides):
        height, width = sides
        raise UserError(
            f"the model takes images whose sides are multiples of {multiple} pixels, not {height}x{width}; resize them "
            "or, if config.json asks for this size, correct its sample_size."
        )


def read_module(path_or_id: str | os.PathLike[str], family: str, class_name: str) -> ModelMixin:
    """Load a module of ``diffusers`` from a folder or a hub id, with weights in float32, however they were saved.

    Raises:
        UserError: nothing there, no safetensors, a checkpoint of another class, or one that lacks weights.
    """
    module_class = getattr(require("diffusers", "images"), class_name)
    with loading(class_name, path_or_id):
        config = module_class.load_config(path_or_id)
        saved = config.get("_class_name", "another library")
        if saved != class_name:
            raise UserError(f"family {family} is diffusers.{class_name}; {path_or_id} is a checkpoint of {saved}.")
        sides = read_sides("sample_size", config.get("sample_size", 1))
        if sides is None and class_name == "AutoencoderKL":  # which computes with it, as the others do not
            raise UserError(
                f"{path_or_id} gives no sample_size: write the side of its images in pixels into its config.json, such "
                'as "sample_size": 256.'
            )
        # low_cpu_mem_usage needs the package accelerate and warns without it; these models are small.
        module, info = module_class.from_pretrained(
            path_or_id, use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=torch.float32,
            variant=variant(path_or_id), output_loading_info=True,
        )  # fmt: skip
        check_complete(path_or_id, info)
        return module
