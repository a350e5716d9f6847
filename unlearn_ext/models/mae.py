"""Masked autoencoders (He et al., arXiv 2111.06377): `transformers.ViTMAEForPreTraining`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError, require
from ..tasks import Corruption
from .freezing import adopt, unwrapped
from .loading import check_complete, encoder_only, loading, variant
from .patches import visible_patches
from .progress_bars import without_bars
from .sides import read_sides

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

__all__ = ["MAE"]

_PROCESSOR = "preprocessor_config.json"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY = ((0.5,), (0.5,))
_SIZES = ("image_size", "patch_size")


class MAE:
    """A ``transformers.ViTMAEForPreTraining`` as an :class:`~unlearn_ext.models.I2IModel`.

    E is the ViT, run only on the visible patches. The indices of these patches are an input besides the images, so that
    the trained model and its frozen copy see the same patches. A patch is visible if the task hides none of its pixels:
    the encoder never sees a hidden pixel, but if the edges of the mask cross patches, slightly more is hidden than the
    task specifies. D is the decoder; it is frozen. Its output for visible patches, for which it was not trained, is
    replaced with these patches; only if nothing is hidden, the result is the decoder's output.

    Args:
        module: the model; wrappers such as ``torch.compile``'s are removed, evaluation mode is set, and everything
            except E is frozen. Position embeddings are not parameters of E. If the configuration gives sizes of images
            and patches as pairs, they are replaced with single numbers.
        mean: mean per channel of pixels in [0, 1], for the normalisation of the model's input; by default ImageNet's,
            or 0.5 for grey images.
        std: standard deviation, likewise.

    Raises:
        UserError: the module is not a ``ViTMAEForPreTraining`` or does not take one or three channels; its images or
            patches are not square, or the patches do not divide the images; or ``mean`` and ``std`` are not one number
            per channel, with positive ``std``.
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
                f"mean and standard deviation need {self.channels} numbers, one per channel of the model, and standard "
                "deviations must be above 0."
            )
        adopt(self)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.module.device

    def inputs(self, images: torch.Tensor, task: Corruption, draw: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and the indices of their visible patches.

        Args:
            images: float32 [N, C, S, S] in [-1, 1].
            task: the task T; its mask gives the hidden pixels.
            draw: not used.

        Returns:
            The unchanged images, and int64 [N, V], the indices of the visible patches in row-major order, ascending.

        Raises:
            UserError: as for :func:`~unlearn_ext.models.patches.visible_patches`.
        """
        patch_size = self.module.config.patch_size
        return images, visible_patches(images, task, self.size, patch_size, self.family)

    def encode(self, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return the latents [N, 1 + V, hidden_size] of the visible patches; the first is the class token."""
        mean, std = self._statistics(images)
        with _keeping(self.module.config, visible.shape[1], self._side**2):
            pixels = ((images + 1) / 2 - mean) / std
            return self.module.vit(pixels, noise=self._rank(visible).float()).last_hidden_state

    def decode(self, latents: torch.Tensor, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return images [N, C, S, S] of latents, with the visible patches pasted in.

        A model trained with ``norm_pix_loss`` predicts patches normalised by their own mean and standard deviation.
        These are unknown for hidden patches, so those of all visible pixels of the image are used.
        """
        predicted = self.module.decoder(latents, self._rank(visible)).logits
        given = self.module.patchify(images)
        index = visible[..., None].expand(-1, -1, given.shape[-1])
        shown = given.gather(1, index)
        filled = self._pixels(predicted, shown)
        return self.module.unpatchify(filled if shown.shape == given.shape else filled.scatter(1, index, shown))

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the ViT except the position embeddings."""
        return [p for name, p in self.module.vit.named_parameters() if not name.endswith("position_embeddings")]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of E in backward passes: less memory, about a third more time."""
        old = self.module.gradient_checkpointing_enable  # later releases of transformers renamed it
        getattr(self.module, "activation_checkpointing_enable", old)()
        cut = require("transformers.modeling_layers", "images").GradientCheckpointingLayer
        for layer in self.module.vit.modules():
            if isinstance(layer, cut):
                layer.training = True  # required for checkpointing; its submodules stay in evaluation mode

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save ``config.json``, the weights as safetensors, and the normalisation of pixels.

        ``ViTMAEForPreTraining.from_pretrained`` loads the model, ``AutoImageProcessor`` the normalisation.
        """
        with without_bars("transformers"):
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
        """Load a model from a folder or a hub id; only safetensors files, because a pickle can run code.

        The weights are converted to float32. Mean and standard deviation are read from ``preprocessor_config.json`` if
        there is one; they are 0 and 1 if it disables normalisation.

        Raises:
            UserError: the checkpoint does not exist, is of another class or has invalid sizes; or an extra is missing.
        """
        transformers = require("transformers", "images")
        with loading("ViTMAEForPreTraining", path_or_id):
            saved, _ = transformers.PreTrainedConfig.get_config_dict(path_or_id)
            if "architecture" in saved:  # of timm
                raise encoder_only(path_or_id)
            for name in (name for name in _SIZES if name in saved):
                _square(name, saved[name])  # the library's own message has twenty lines
            config = transformers.AutoConfig.from_pretrained(path_or_id)
            if config.model_type != "vit_mae":
                raise UserError(
                    f"family mae is ViTMAEForPreTraining; {path_or_id} is a checkpoint of {config.model_type}."
                )
            _make_square(config)  # the class computes only with single numbers
            with without_bars("transformers"):
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
        """Number of patches along a side."""
        return self.size // self.module.config.patch_size

    def _statistics(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation, [C, 1, 1] each, with the dtype and device of the images."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return mean, std

    def _pixels(self, predicted: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """Return the decoder's prediction as patches [N, P, p·p·C] in [-1, 1].

        Args:
            predicted: the decoder's prediction, [N, P, p·p·C].
            shown: the visible patches, [N, V, p·p·C].
        """
        if self.module.config.norm_pix_loss:
            return predicted * shown.std((1, 2), keepdim=True) + shown.mean((1, 2), keepdim=True)
        mean, std = self._statistics(predicted)
        return self.module.patchify((self.module.unpatchify(predicted) * std + mean) * 2 - 1)

    def _rank(self, visible: torch.Tensor) -> torch.Tensor:
        """Return each patch's position if the visible patches come first, otherwise in order: int64 [N, P]."""
        hidden = torch.ones(len(visible), self._side**2, dtype=torch.int64, device=visible.device)
        hidden.scatter_(1, visible, 0)
        return hidden.argsort(dim=1, stable=True).argsort(dim=1)


def _make_square(config: Any) -> None:
    """Replace the sizes of images and patches in a configuration with one number each.

    Raises:
        UserError: a size is missing or not square, or the patches do not divide the images.
    """
    for name in _SIZES:
        setattr(config, name, _square(name, getattr(config, name)))
    if config.image_size % config.patch_size:
        raise UserError(
            f"the model's configuration has images of {config.image_size} pixels a side, which patches of "
            f"{config.patch_size} do not divide: correct image_size or patch_size."
        )


def _square(name: str, value: Any) -> int:
    """Return the side in pixels of a configuration entry.

    Raises:
        UserError: it is missing or not square.
    """
    sides = read_sides(name, value)
    if sides is None or sides[0] != sides[1]:
        raise UserError(
            f"{name} in the model's configuration is {value}; the class supports only squares, so it must be one "
            "number of pixels."
        )
    return sides[0]


@contextmanager
def _keeping(config: Any, visible: int, patches: int) -> Iterator[None]:
    """Set ``mask_ratio`` so that the class keeps ``visible`` patches; it keeps ``int(patches · (1 − mask_ratio))``."""
    usual = config.mask_ratio
    config.mask_ratio = 1 - (visible + 0.5) / patches
    try:
        yield
    finally:
        config.mask_ratio = usual
