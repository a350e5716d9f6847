"""Autoencoders: `diffusers.AutoencoderKL` (Kingma and Welling, arXiv 1312.6114), and any encoder and decoder.

Those of ``autoencoder_tiny.py`` are of the same family.
"""

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
from .autoencoder_tiny import AutoencoderTiny
from .freezing import adopt, unwrapped
from .from_diffusers import DiffusersAutoencoder, saved_class
from .outputs import described, only_tensor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SAME", "Autoencoder", "AutoencoderKL"]

SAME = 1e-3  # largest difference, relative to the largest latent, of two passes over the same images; GPU sums vary

_FILES = ("encoder.safetensors", "decoder.safetensors")


class AutoencoderKL(DiffusersAutoencoder):
    """A ``diffusers.AutoencoderKL`` as an :class:`~unlearn_ext.models.I2IModel`.

    E is the encoder with ``quant_conv``, up to the mean of the latent distribution. The weights of the last layer that
    compute the variance are not changed, and no objective controls the variance, which depends on the trained layers.
    D is ``post_quant_conv`` and the decoder; it is frozen.

    Args:
        module: the model; wrappers such as ``torch.compile``'s are removed, evaluation mode is set, and everything
            except E is frozen.

    Raises:
        UserError: as for :class:`~unlearn_ext.models.from_diffusers.DiffusersAutoencoder`.
    """

    family = "autoencoder"
    class_name = "AutoencoderKL"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents [N, latent_channels, h, w], without scaling factor, of images [N, C, H, W] in [-1, 1]."""
        return self.module.encode(images).latent_dist.mean

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, H, W] of latents [N, latent_channels, h, w]; the inputs are ignored."""
        return self.module.decode(latents).sample

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> DiffusersAutoencoder:
        """Load a model of the family from a folder or a hub id; only safetensors files, because a pickle can run code.

        Its class is the one that the configuration names: this one, or that of a tiny autoencoder.

        Raises:
            UserError: the checkpoint does not exist, is of another class, lacks weights, or is one that ``Autoencoder``
                saved; or an extra is missing.
        """
        if all((Path(path_or_id) / name).is_file() for name in _FILES):
            raise UserError(
                f"{path_or_id} contains the weights of an encoder and a decoder, but not their classes: build both "
                "modules in Python, and load each file with safetensors.torch.load_model."
            )
        if saved_class(path_or_id, cls.class_name) in AutoencoderTiny.class_names:
            return AutoencoderTiny.from_pretrained(path_or_id)
        return super().from_pretrained(path_or_id)


class Autoencoder:
    """Any encoder and decoder as an :class:`~unlearn_ext.models.I2IModel`.

    The constructor runs both on two images of noise, so that unsuitable modules fail early. Each may return a tensor, a
    distribution or another object with a tensor ``mean`` (the mean is used), or a tuple, list, dictionary or
    ``ModelOutput`` that contains one of these and nothing else.

    Args:
        encoder: E, from images [N, C, S, S] in [-1, 1] to floating-point latents [N, ...]; evaluation mode is set.
        decoder: D, from latents [N, ...] to images [N, C, S, S]; evaluation mode is set, and it is frozen. The
            wrappers of ``torch.compile``, ``DataParallel`` and the like are removed from both.
        channels: number of image channels, 1 or 3.
        size: S, the side of the images in pixels.

    Raises:
        UserError: one of the two is not a module, has weights that are not initialized or not float32, or returns
            something that is not described above; the encoder has no parameters, shares some with the decoder, gives
            latents without a gradient, or gives different latents for the same images; ``channels`` is not 1 or 3; or
            ``size`` is not a positive whole number.
    """

    family = "autoencoder"
    random = False

    def __init__(self, encoder: torch.nn.Module, decoder: torch.nn.Module, *, channels: int, size: int) -> None:
        self.encoder, self.decoder = (_module(*part) for part in (("encoder", encoder), ("decoder", decoder)))
        self.module: torch.nn.Module = torch.nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.channels, self.size = channels, size
        trained, frozen = set(self.encoder.parameters()), set(self.decoder.parameters())
        if not trained:
            raise UserError("the encoder has no parameters, so nothing can be unlearned.")
        if trained & frozen:
            raise UserError(
                "encoder and decoder share parameters, but the decoder must not change: give them separate parameters."
            )
        if type(size) is not int or size < 1:
            raise UserError(f"size is {size!r}; it must be the side of the images, a whole number of pixels.")
        adopt(self)
        self._try()

    @property
    def device(self) -> torch.device:
        """The device of the encoder."""
        return self.encoder_parameters()[0].device

    def inputs(
        self, images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], draw: int = 0
    ) -> tuple[torch.Tensor]:
        """Return the corrupted images, float [N, C, H, W]."""
        return (task(images),)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents [N, ...] of images [N, C, S, S] in [-1, 1]."""
        latents = only_tensor(self.encoder(images.clone()))  # the first layer may be in-place
        assert latents is not None  # the constructor checks it
        return latents

    def decode(self, latents: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, S, S] of latents [N, ...]; the inputs are ignored."""
        images = only_tensor(self.decoder(latents.clone()))
        assert images is not None  # the constructor checks it
        return images

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the encoder."""
        return list(self.encoder.parameters())

    def enable_gradient_checkpointing(self) -> None:
        """Raise ``UserError``: it is not known which parts of this encoder can be recomputed."""
        raise UserError(
            "gradient checkpointing cannot be switched on for your own encoder: call torch.utils.checkpoint in its "
            "forward method."
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the weights as ``encoder.safetensors`` and ``decoder.safetensors``; the classes are not saved.

        To load the weights, build both modules and call ``safetensors.torch.load_model`` for each file.
        """
        save_model = require("safetensors.torch", "images").save_model
        Path(folder).mkdir(parents=True, exist_ok=True)
        for module, name in zip((self.encoder, self.decoder), _FILES, strict=True):
            save_model(module, str(Path(folder) / name))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy everything; tensors that modules keep from a forward pass lose their graphs, which torch cannot copy."""
        for module in self.module.modules():
            for value in tree_leaves(vars(module)):
                if isinstance(value, torch.Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def _try(self) -> None:
        """Encode two images of noise twice and decode them once; no buffer or random number generator changes.

        Raises:
            UserError: see the class.
        """
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, self.channels, self.size, self.size, generator=generator).to(self.device) * 2 - 1
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _buffers_kept(self.module):
            with torch.enable_grad():
                latents = _called("encoder", self.encoder, images)
            with torch.no_grad():  # last, so that tensors that modules keep have no graph
                again = _called("encoder", self.encoder, images)
                _check_latents(latents, again, len(images))
                made = _called("decoder", self.decoder, again)
        if made.shape != images.shape or not made.is_floating_point():
            raise UserError(
                f"the decoder returns {_kind(made)} for the latents of 2 images; it must return floating-point images "
                f"{list(images.shape)} in [-1, 1]."
            )


def _module(name: str, module: torch.nn.Module) -> torch.nn.Module:
    """Return an encoder or decoder without wrappers.

    Raises:
        UserError: it is not a module, has weights that are not initialized, or is an encoder with TorchScript parts.
    """
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"the {name} is a {type(module).__name__}; give a torch.nn.Module.")
    module = unwrapped(module)
    if name == "encoder" and any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise UserError(
            "the encoder has parts in TorchScript, whose copies torch cannot train: give the module that it was made "
            "from."
        )
    if any(is_lazy(part) for part in [*module.parameters(), *module.buffers()]):
        raise UserError(
            f"the {name} has lazy layers whose weights are not initialized: load its weights or run it once first."
        )
    return module


@contextmanager
def _buffers_kept(module: torch.nn.Module) -> Iterator[None]:
    """Restore all buffers on exit: those that were written to and those that were replaced."""
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
    """Run a module on a copy of a tensor [N, ...], and return the tensor in its output.

    Raises:
        UserError: the module fails, or it is not obvious which tensor of its output is meant.
    """
    try:
        output = module(given.clone())
    except Exception as error:
        said = textwrap.shorten(str(error), 240, placeholder=" …")
        raise UserError(f"the {name} fails on {_kind(given)}: {said}") from error
    tensor = only_tensor(output)
    if tensor is None:
        raise UserError(
            f"the {name} returns {described(output)}, and it is not obvious which tensor is meant: wrap it in a module "
            "whose forward returns only that tensor."
        )
    return tensor


def _check_latents(latents: torch.Tensor, again: torch.Tensor, count: int) -> None:
    """Check that f1 and f2 can be computed from latents and minimised.

    Args:
        latents: latents of some images, computed with gradient.
        again: latents of the same images, computed again.
        count: number of images.

    Raises:
        UserError: the first dimension is not the number of images, there is no gradient, or the latents are random.
    """
    if not latents.dim() or len(latents) != count:
        raise UserError(
            f"the encoder returns {_kind(latents)} for {count} images; the first dimension must be the number of "
            "images."
        )
    if not (latents.requires_grad and latents.is_floating_point()):
        raise UserError(
            f"the encoder's latents, {_kind(latents)}, have no gradient: it must return floating-point latents before "
            "they are rounded, looked up in a codebook or detached."
        )
    if latents.shape != again.shape or (latents - again).abs().max() > SAME * latents.abs().max():
        raise UserError(
            "the encoder returns different latents for the same images, because it draws random numbers: let it return "
            "their mean."
        )


def _kind(tensor: torch.Tensor) -> str:
    """Return dtype and shape, such as ``float32 [2, 1, 8, 8]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
