"""Load, check and save models of `diffusers`; the base class of its autoencoders."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..errors import UserError, require
from .freezing import adopt, unwrapped
from .loading import check_complete, loading, variant
from .sides import read_sides

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["DiffusersAutoencoder", "check_class", "check_sides", "read_module", "sample_side", "saved_class"]


# Objects of diffusers are `Any` here: type checkers see its classes as placeholders without attributes.


class DiffusersAutoencoder(ABC):
    """Base class: an autoencoder of ``diffusers`` as an :class:`~unlearn_ext.models.I2IModel`.

    E is the encoder with ``quant_conv``, if there is one.

    Args:
        module: the model; wrappers such as ``torch.compile``'s are removed, evaluation mode is set, and everything
            except E is frozen.

    Attributes:
        class_name: name of the module's class in ``diffusers``.

    Raises:
        UserError: the module is of another class, does not take one or three channels, returns another number of
            channels than it takes, or its ``sample_size`` is invalid.
    """

    family: ClassVar[str]
    class_name: ClassVar[str]
    random = False

    def __init__(self, module: ModelMixin) -> None:
        self.module: Any = unwrapped(module)
        check_class(self.module, self.family, self.class_name)
        config = self.module.config
        self.channels = int(config.in_channels)
        if config.out_channels != self.channels:
            raise UserError(
                f"the model takes images of {self.channels} channels and returns {config.out_channels}; give a model "
                "that returns as many channels as it takes."
            )
        read_sides("sample_size", config.get("sample_size"))  # those of tiny autoencoders have none
        adopt(self)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.module.device

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model was made for; in Python it takes other sizes as well.

        Raises:
            UserError: the configuration gives no size, a size that is not square, or one that the output cannot have.
        """
        return sample_side(self.module)

    def inputs(
        self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0
    ) -> tuple[torch.Tensor]:
        """Return the corrupted images, float [N, C, H, W].

        Raises:
            UserError: the model would return images of another size.
        """
        check_sides(images.shape[-2:], self.module)
        return (task(images),)

    @abstractmethod
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents [N, ...] of images [N, C, H, W] in [-1, 1]."""

    @abstractmethod
    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, H, W] of latents [N, ...]; the inputs are ignored."""

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the encoder and of ``quant_conv``."""
        quant_conv = self.module.quant_conv
        return [*self.module.encoder.parameters(), *(quant_conv.parameters() if quant_conv is not None else ())]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes: less memory, about a third more time."""
        self.module._supports_gradient_checkpointing = True  # VQModel's encoder supports it, but its class denies it
        self.module.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save ``config.json`` and the weights as safetensors, for the ``from_pretrained`` of the module's class."""
        self.module.save_pretrained(folder, safe_serialization=True)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> DiffusersAutoencoder:
        """Load a model from a folder or a hub id; only safetensors files, because a pickle can run code.

        Raises:
            UserError: the checkpoint does not exist, is of another class or lacks weights; an extra is missing; or as
                for the class itself.
        """
        return cls(read_module(path_or_id, cls.family, cls.class_name))


def check_class(module: object, family: str, class_name: str) -> None:
    """Check that a module is of its family's class.

    Raises:
        UserError: it is not.
    """
    if not isinstance(module, getattr(require("diffusers", "images"), class_name)):
        raise UserError(f"family {family} is diffusers.{class_name}; this model is a {type(module).__name__}.")


def sample_side(module: Any) -> int:
    """Return the side in pixels of the square images that a convolutional module was made for.

    Raises:
        UserError: the configuration gives no size, a size that is not square, or one that :func:`check_sides` rejects.
    """
    sides = read_sides("sample_size", module.config.get("sample_size"))
    if sides is None:
        raise UserError(
            "the model's configuration does not say how large its images are: write their side in pixels into its "
            'config.json, such as "sample_size": 256.'
        )
    check_sides(sides, module)
    if sides[0] != sides[1]:
        raise UserError(
            f"the model was made for images of {sides[0]}x{sides[1]} pixels, but image files are read as squares only: "
            "in Python, pass images of that size as tensors."
        )
    return sides[0]


def check_sides(sides: Sequence[int], module: Any) -> None:
    """Check that a convolutional module returns images of the size that it takes.

    Args:
        sides: height and width of the images, in pixels.
        module: the module; each of its blocks except one halves the sides.

    Raises:
        UserError: a side cannot be halved that often.
    """
    multiple = 2 ** (len(module.config.block_out_channels) - 1)
    if any(side % multiple for side in sides):
        height, width = sides
        raise UserError(
            f"the model takes images whose sides are multiples of {multiple} pixels, not {height}x{width}; resize them "
            "or, if config.json asks for this size, correct its sample_size."
        )


def saved_class(path_or_id: str | os.PathLike[str], class_name: str) -> Any:
    """Return the name of the class in the configuration of a folder or a hub id; None if it names none.

    Args:
        path_or_id: folder or hub id.
        class_name: name of the class that is expected.

    Raises:
        UserError: there is no configuration.
    """
    module_class = getattr(require("diffusers", "images"), class_name)
    with loading(class_name, path_or_id):
        return module_class.load_config(path_or_id).get("_class_name")


def read_module(path_or_id: str | os.PathLike[str], family: str, class_name: str) -> Any:
    """Load a module of ``diffusers``, or a TAEF2, from a folder or a hub id, and convert its weights to float32.

    Raises:
        UserError: the checkpoint does not exist, has no safetensors file, is of another class, or lacks weights.
    """
    library = require("diffusers", "images")
    if class_name == "TAEF2":  # the only class here that is not one of diffusers
        library = import_module(".taef2", __package__)
    module_class = getattr(library, class_name)
    with loading(class_name, path_or_id):
        config = module_class.load_config(path_or_id)
        saved = config.get("_class_name", "another library")
        if saved != class_name:
            raise UserError(f"family {family} is diffusers.{class_name}; {path_or_id} is a checkpoint of {saved}.")
        sides = read_sides("sample_size", config.get("sample_size", 1))
        if sides is None and class_name == "AutoencoderKL":  # the only class here that computes with it
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
