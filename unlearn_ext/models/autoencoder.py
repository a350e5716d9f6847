"""Autoencoders: `diffusers.AutoencoderKL` (Kingma and Welling, arXiv 1312.6114), and any pair of modules."""

from __future__ import annotations

import copy
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from .._torch_internals import tree_leaves
from ..errors import UserError, require
from .freezing import adopt, unwrapped
from .from_diffusers import DiffusersAutoencoder
from .outputs import described, only_tensor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SAME", "Autoencoder", "AutoencoderKL"]

SAME = 1e-3  # of the largest latent: by less do two passes over the same images differ, as sums on a GPU do

_FILES = ("encoder.safetensors", "decoder.safetensors")


class AutoencoderKL(DiffusersAutoencoder):
    """A ``diffusers.AutoencoderKL`` as an :class:`~unlearn_ext.models.I2IModel`.

    E is the encoder with ``quant_conv``, up to the mean of the latent distribution. The part of its last layer that
    gives the variance keeps its weights, and no objective watches what they make of the layers below.
    D is ``post_quant_conv`` and the decoder; it is frozen.

    Args:
        module: the model; wrappers such as ``torch.compile``'s are taken off; put in evaluation mode, and all but E
            frozen.

    Raises:
        UserError: as for :class:`~unlearn_ext.models.from_diffusers.DiffusersAutoencoder`.
    """

    family = "autoencoder"
    class_name = "AutoencoderKL"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return latents [N, latent_channels, h, w], not scaled, of images [N, C, H, W] in [-1, 1]."""
        return self.module.encode(images).latent_dist.mean

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, H, W] of latents [N, latent_channels, h, w]; the inputs are not needed."""
        return self.module.decode(latents).sample

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> Self:
        """Load a model from a folder or a hub id; safetensors only, since a pickle runs code.

        Raises:
            UserError: nothing there, a checkpoint of another class, one that lacks weights, a pair of modules, or a
                missing extra.
        """
        if all((Path(path_or_id) / name).is_file() for name in _FILES):
            raise UserError(
                f"{path_or_id} holds the weights of a pair of modules, whose classes only you know: build both, and "
                "read each file with safetensors.torch.load_model."
            )
        return super().from_pretrained(path_or_id)


class Autoencoder:
    """Any encoder and decoder as an :class:`~unlearn_ext.models.I2IModel`.

    Both are tried on two images of noise at construction, so that what cannot work is said there. What they return may
    be the tensor itself, a distribution (its mean is taken), anything else with a tensor called ``mean``, or a tuple,
    list, dictionary or ``ModelOutput`` that holds one of these and nothing else.

    Args:
        encoder: E, from images [N, C, S, S] in [-1, 1] to floating-point latents [N, ...]; put in evaluation mode.
        decoder: D, from latents [N, ...] to images [N, C, S, S]; put in evaluation mode and frozen. Wrappers of
            ``torch.compile``, ``DataParallel`` and the like are taken off both.
        channels: of the images, 1 or 3.
        size: S, their side in pixels.

    Raises:
        UserError: one of the two is no module, has weights that are not initialized or not float32, or returns
            something else than described here; the encoder has no parameters, shares some with the decoder, has
            latents without gradient, or gives the same images other latents each time; neither one nor three
            channels; or the size is no whole number.
    """

    family = "autoencoder"
    random = False

    def __init__(self, encoder: torch.nn.Module, decoder: torch.nn.Module, *, channels: int, size: int) -> None:
        self.encoder, self.decoder = (_module(*part) for part in (("encoder", encoder), ("decoder", decoder)))
        self.module = torch.nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.channels, self.size = channels, size
        trained, frozen = set(self.encoder.parameters()), set(self.decoder.parameters())
        if not trained:
            raise UserError("the encoder has no parameters, so nothing can be unlearned.")
        if trained & frozen:
            raise UserError("encoder and decoder share parameters; the decoder is to stay as it is, so they must not.")
        if type(size) is not int or size < 1:
            raise UserError(f"size is {size!r}; it must be the side of the images, a whole number of pixels.")
        adopt(self)
        self._try()

    @property
    def device(self) -> torch.device:
        return self.encoder_parameters()[0].device

    def inputs(
        self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0
    ) -> tuple[torch.Tensor]:
        """Return the corrupted images, float [N, C, H, W]."""
        return (task(images),)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return latents [N, ...] of images [N, C, S, S] in [-1, 1]."""
        return only_tensor(self.encoder(images.clone()))  # the first layer may work in place

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, S, S] of latents [N, ...]; the inputs are not needed."""
        return only_tensor(self.decoder(latents.clone()))

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.encoder.parameters())

    def enable_gradient_checkpointing(self) -> None:
        """Raise ``UserError``: only the author of this encoder knows which parts of it can be recomputed."""
        raise UserError(
            "gradient checkpointing of your own encoder must be written in its forward, with torch.utils.checkpoint."
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all, but not the graphs of tensors that modules keep of their last forward pass; torch refuses to."""
        for module in self.module.modules():
            for value in tree_leaves(vars(module)):
                if isinstance(value, torch.Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def _try(self) -> None:
        """Encode two images of noise twice, and decode them once; no buffer and no random generator is changed.

        Raises:
            UserError: see the class.
        """
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, self.channels, self.size, self.size, generator=generator).to(self.device) * 2 - 1
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _buffers_kept(self.module):
            with torch.enable_grad():
                latents = _called("encoder", self.encoder, images)
            with torch.no_grad():  # after it, no module keeps a graph
                again = _called("encoder", self.encoder, images)
                _check_latents(latents, again, len(images))
                made = _called("decoder", self.decoder, again)
        if made.shape != images.shape or not made.is_floating_point():
            raise UserError(
                f"the decoder makes {_kind(made)} of the latents of 2 images; it must make floating-point images "
                f"{list(images.shape)}, in [-1, 1]."
            )


def _module(name: str, module: torch.nn.Module) -> torch.nn.Module:
    """Return an encoder or decoder without wrappers.

    Raises:
        UserError: it is no module, has weights that are not initialized, or is an encoder with parts in TorchScript.
    """
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"the {name} is a {type(module).__name__}; give a torch.nn.Module.")
    module = unwrapped(module)
    if name == "encoder" and any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise UserError(
            "the encoder has parts in TorchScript, of which torch makes no copies that can be trained: give the module "
            "that it was made from."
        )
    if any(is_lazy(part) for part in [*module.parameters(), *module.buffers()]):
        raise UserError(
            f"the {name} has lazy layers whose weights are not initialized: load its weights, or run it once, before."
        )
    return module


@contextmanager
def _buffers_kept(module: torch.nn.Module) -> Iterator[None]:
    """Put back all buffers at the end, those that were written to and those that were replaced."""
    before = [
        (part, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for part, name, buffer, value in before:
            buffer.copy_(value)
            setattr(part, name, buffer)


def _called(name: str, module: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Return the tensor that a module makes of another [N, ...], which is not written to.

    Raises:
        UserError: it cannot be run, or it is not obvious which tensor is meant.
    """
    try:
        output = module(given.clone())
    except Exception as error:
        said = textwrap.shorten(str(error), 240, placeholder=" …")
        raise UserError(f"the {name} does not take {_kind(given)}: {said}") from error
    tensor = only_tensor(output)
    if tensor is None:
        raise UserError(
            f"the {name} returns {described(output)}, and it is not obvious which tensor is meant: wrap it in a module "
            "whose forward returns that one."
        )
    return tensor


def _check_latents(latents: torch.Tensor, again: torch.Tensor, count: int) -> None:
    """Check that f1 and f2 can be computed from latents and lowered.

    Args:
        latents: of some images, computed with gradient.
        again: latents of the same images.
        count: of the images.

    Raises:
        UserError: the first dimension is not that of the images, there is no gradient, or they are random.
    """
    if not latents.dim() or len(latents) != count:
        raise UserError(
            f"the encoder makes {_kind(latents)} of {count} images; the first dimension must be that of the images."
        )
    if not (latents.requires_grad and latents.is_floating_point()):
        raise UserError(
            f"the encoder's latents, {_kind(latents)}, have no gradient: it must return floating-point latents as they "
            "are before they are rounded, looked up or detached."
        )
    if latents.shape != again.shape or (latents - again).abs().max() > SAME * latents.abs().max():
        raise UserError(
            "the encoder makes other latents of the same images each time, since it draws random numbers: have it "
            "return their mean."
        )


def _kind(tensor: torch.Tensor) -> str:
    """Return dtype and shape, such as ``float32 [2, 1, 8, 8]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
