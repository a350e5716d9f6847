"""Masked autoencoders (He et al., arXiv 2111.06377): `transformers.ViTMAEForPreTraining`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..errors import UserError, require
from ..tasks import Task
from .freezing import adopt, unwrapped
from .loading import check_complete, loading, variant
from .sides import read_sides

if TYPE_CHECKING:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

__all__ = ["MAE"]

_PROCESSOR = "preprocessor_config.json"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY = ((0.5,), (0.5,))
_SIZES = {"image_size", "patch_size"}


class MAE:
    """A ``transformers.ViTMAEForPreTraining`` as an :class:`~unlearn_ext.models.I2IModel`.

    E is the ViT, run on the visible patches alone; which these are is an input beside the images, so that the model in
    training and its frozen copy see the same ones. A patch is visible if the task hides none of its pixels: the encoder
    never sees a hidden pixel, and where the task's edges cross patches, somewhat more is hidden than it asks. D is the
    decoder, with the visible patches pasted over what it makes of them, on which it was never trained; only where
    nothing is hidden is its own answer the whole picture. D is frozen.

    Args:
        module: the model; wrappers such as ``torch.compile``'s are taken off; put in evaluation mode, and all but E
            frozen. Position embeddings are no parameters of E. Where its configuration gives sizes of images and
            patches as pairs, these become single numbers.
        mean: of the pixels in [0, 1], a number a channel, by which the model expects them normalised; ImageNet's by
            default, 0.5 for grey images.
        std: likewise; 0.5 for grey images.

    Raises:
        UserError: the module is no ``ViTMAEForPreTraining``, takes neither one nor three channels, its images or
            patches are no squares or the patches do not divide the images, or the mean and the standard deviation are
            of another number of channels or no such numbers.
    """

    family = "mae"
    random = False

    def __init__(
        self, module: ViTMAEForPreTraining, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        module = unwrapped(module)
        if not isinstance(module, require("transformers", "images").ViTMAEForPreTraining):
            raise UserError(
                f"family mae is transformers.ViTMAEForPreTraining; this model is a {type(module).__name__}."
            )
        _make_square(module.config)
        self.module = module
        self.channels, self.size = int(module.config.num_channels), module.config.image_size
        usual_mean, usual_std = _IMAGENET if self.channels == 3 else _GREY
        self.mean, self.std = tuple(mean or usual_mean), tuple(std or usual_std)
        numbers = all(isinstance(value, (int, float)) for value in (*self.mean, *self.std)) and min(self.std) > 0
        if not len(self.mean) == len(self.std) == self.channels or not numbers:
            raise UserError(
                f"mean and standard deviation need {self.channels} numbers, one a channel of the model, and a standard "
                "deviation is more than 0."
            )
        adopt(self)

    @property
    def device(self) -> torch.device:
        return self.module.device

    def inputs(self, images: torch.Tensor, task: Task, draw: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The images, and which patches of them are visible.

        Args:
            images: float32 [N, C, S, S] in [-1, 1].
            task: T, whose mask says what is hidden.
            draw: of no use here.

        Returns:
            images as they are, and int64 [N, V], the numbers of the visible patches, rising, row by row.

        Raises:
            UserError: images of another side than the model's, a task without a mask, no patch left visible, or more
                patches left visible in one image than in another.
        """
        if tuple(images.shape[-2:]) != (self.size, self.size):
            height, width = images.shape[-2:]
            raise UserError(f"the model takes images of {self.size}x{self.size} pixels, not {height}x{width}.")
        if not isinstance(task, Task):
            raise UserError("a masked autoencoder needs a task with a mask, one of unlearn_ext.tasks.")
        hidden = F.max_pool2d(task.mask(images).float(), self.module.config.patch_size).flatten(1)
        counts = (hidden == 0).sum(1)
        if counts.min() == 0:
            raise UserError(f"task {task} leaves no patch of the model wholly visible; hide less.")
        if counts.min() != counts.max():
            raise UserError(
                f"task {task} leaves more patches visible in one image than in another; a masked autoencoder needs as "
                f"many in each, which random-mask gives on the model's own grid: random-mask:F:{self._side}."
            )
        visible = (hidden == 0).nonzero()[:, 1].view(len(hidden), -1)
        return images, visible.expand(len(images), -1)

    def encode(self, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Latents [N, 1 + V, hidden_size], the class token first, of :meth:`inputs`."""
        mean, std = self._statistics(images)
        with _keeping(self.module.config, visible.shape[1], self._side**2):
            pixels = ((images + 1) / 2 - mean) / std
            return self.module.vit(pixels, noise=self._rank(visible).float()).last_hidden_state

    def decode(self, latents: torch.Tensor, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Images [N, C, S, S] of latents and what they are of, the visible patches pasted in.

        A model trained with ``norm_pix_loss`` gives each patch without its mean and spread, which nobody knows of a
        hidden one: it is given those of all visible pixels of its image.
        """
        predicted = self.module.decoder(latents, self._rank(visible)).logits
        given = self.module.patchify(images)
        index = visible[..., None].expand(-1, -1, given.shape[-1])
        shown = given.gather(1, index)
        filled = self._pixels(predicted, shown)
        return self.module.unpatchify(filled if shown.shape == given.shape else filled.scatter(1, index, shown))

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        return [p for name, p in self.module.vit.named_parameters() if not name.endswith("position_embeddings")]

    def enable_gradient_checkpointing(self) -> None:
        old = self.module.gradient_checkpointing_enable  # which later releases call by another name
        getattr(self.module, "activation_checkpointing_enable", old)()
        cut = require("transformers.modeling_layers", "images").GradientCheckpointingLayer
        for layer in self.module.vit.modules():
            if isinstance(layer, cut):
                layer.training = True  # else it would not; what is in it stays in evaluation mode

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json``, the weights as safetensors, and how pixels are normalised.

        The model is loaded by ``ViTMAEForPreTraining.from_pretrained``, the rest by ``AutoImageProcessor``.
        """
        with _without_bars():
            self.module.save_pretrained(folder)
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": self.size, "width": self.size},
            "image_mean": self.mean,
            "image_std": self.std,
        }
        (Path(folder) / _PROCESSOR).write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> MAE:
        """Load a model from a folder or a hub id; safetensors only, since a pickle runs code.

        The weights are loaded in float32, however they were saved. Mean and standard deviation are those of
        ``preprocessor_config.json`` where there is one, 0 and 1 where it says that pixels are not normalised.

        Raises:
            UserError: nothing there, a checkpoint of another class, sizes of which the class makes no model, or a
                missing extra.
        """
        transformers = require("transformers", "images")
        with loading("ViTMAEForPreTraining", path_or_id):
            saved, _ = transformers.PreTrainedConfig.get_config_dict(path_or_id)
            for name in _SIZES & saved.keys():
                _square(name, saved[name])  # the library's own sentence takes twenty lines
            config = transformers.AutoConfig.from_pretrained(path_or_id)
            if config.model_type != "vit_mae":
                raise UserError(
                    f"family mae is ViTMAEForPreTraining; {path_or_id} is a checkpoint of {config.model_type}."
                )
            _make_square(config)  # before the class sees it, which computes with single numbers alone
            with _without_bars():
                module, info = transformers.ViTMAEForPreTraining.from_pretrained(
                    path_or_id, config=config, use_safetensors=True, dtype=torch.float32, variant=variant(path_or_id),
                    output_loading_info=True, ignore_mismatched_sizes=True,
                )  # fmt: skip
            check_complete(path_or_id, info)
            processor = transformers.utils.cached_file(
                path_or_id, _PROCESSOR, _raise_exceptions_for_missing_entries=False
            )
            read = json.loads(Path(processor).read_text(encoding="utf-8")) if processor else {}
            if read.get("do_normalize", True):
                return cls(module, read.get("image_mean"), read.get("image_std"))
        return cls(module, (0.0,) * module.config.num_channels, (1.0,) * module.config.num_channels)

    @property
    def _side(self) -> int:
        """Patches along a side."""
        return self.size // self.module.config.patch_size

    def _statistics(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, [C, 1, 1]."""
        return tuple(images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))

    def _pixels(self, predicted: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """Patches [N, P, p·p·C] in [-1, 1] of what the decoder predicts, beside the visible ones [N, V, p·p·C]."""
        if self.module.config.norm_pix_loss:
            return predicted * shown.std((1, 2), keepdim=True) + shown.mean((1, 2), keepdim=True)
        mean, std = self._statistics(predicted)
        return self.module.patchify((self.module.unpatchify(predicted) * std + mean) * 2 - 1)

    def _rank(self, visible: torch.Tensor) -> torch.Tensor:
        """int64 [N, P], the place of each patch among all when the visible ones come first, each part in its order."""
        hidden = torch.ones(len(visible), self._side**2, dtype=torch.int64, device=visible.device)
        hidden.scatter_(1, visible, 0)
        return hidden.argsort(dim=1, stable=True).argsort(dim=1)


def _make_square(config: ViTMAEConfig) -> None:
    """Write the sides of images and of patches as one number each into a configuration.

    Raises:
        UserError: one of them is missing or no square, or images are not a whole number of patches wide.
    """
    for name in _SIZES:
        setattr(config, name, _square(name, getattr(config, name)))
    if config.image_size % config.patch_size:
        raise UserError(
            f"the model's configuration has images of {config.image_size} pixels a side, which patches of "
            f"{config.patch_size} do not divide: correct image_size or patch_size."
        )


def _square(name: str, value: Any) -> int:
    """Return the side in pixels of an entry of a configuration.

    Raises:
        UserError: it is missing or no square.
    """
    sides = read_sides(name, value)
    if sides is None or sides[0] != sides[1]:
        raise UserError(
            f"{name} in the model's configuration is {value}; the class takes apart and puts together squares only, "
            "so it must be one number of pixels."
        )
    return sides[0]


@contextmanager
def _keeping(config: object, visible: int, patches: int) -> Iterator[None]:
    """The class keeps ``int(patches · (1 − mask_ratio))`` patches: inside, as many as are visible."""
    usual = config.mask_ratio
    config.mask_ratio = 1 - (visible + 0.5) / patches
    try:
        yield
    finally:
        config.mask_ratio = usual


@contextmanager
def _without_bars() -> Iterator[None]:
    """The library's own progress bars, of weights read and written, stay out of ours."""
    logging = require("transformers.utils.logging", "images")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
