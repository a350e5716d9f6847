"""CLIP (Radford et al., arXiv 2103.00020): the image embedding of a `transformers.CLIPModel`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..._utils.hub import check_reachable, expanded
from ...errors import UserError, require
from .pixels import resized, rgb

__all__ = ["CLIP"]


class CLIP:
    """Projected image embeddings [N, D]; there are no classes and no feature maps.

    The normalisation of pixels is read from ``preprocessor_config.json`` beside the weights; the default is OpenAI's.

    Args:
        path_or_id: folder (``~`` is the home folder) or hub id; only safetensors files, because a pickle can run code.

    Raises:
        UserError: the checkpoint does not exist or is of another class, or an extra is missing.
    """

    def __init__(self, path_or_id: str) -> None:
        transformers = require("transformers", "images")
        check_reachable(path_or_id)
        self.name = f"clip:{path_or_id}"
        place = expanded(path_or_id)
        try:
            saved = transformers.AutoConfig.from_pretrained(place).model_type
        except (OSError, ValueError) as error:
            raise _unreadable(place, error) from error
        if saved != "clip":
            raise UserError(f"clip is transformers.CLIPModel; {place} is a checkpoint of {saved}.")
        try:
            module = transformers.CLIPModel.from_pretrained(place, use_safetensors=True)
            processor = transformers.utils.cached_file(
                place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
            )
        except (OSError, ValueError) as error:
            raise _unreadable(place, error) from error
        read = json.loads(Path(processor).read_text(encoding="utf-8")) if processor else {}
        usual = transformers.image_utils
        self.mean, self.std = (
            torch.tensor(read.get(key, default)).view(-1, 1, 1)
            for key, default in (("image_mean", usual.OPENAI_CLIP_MEAN), ("image_std", usual.OPENAI_CLIP_STD))
        )
        self.module = module.eval().requires_grad_(False)
        self.size = module.config.vision_config.image_size

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, D] of images, float32 [N, C, H, W] in [-1, 1]."""
        pixels = (resized(rgb(images), self.size) + 1) / 2
        seen = self.module.vision_model(pixel_values=(pixels - self.mean) / self.std).pooler_output
        return self.module.visual_projection(seen)

    def logits(self, features: torch.Tensor) -> None:
        """Return None: there are no classes."""
        return None

    def maps(self, images: torch.Tensor) -> tuple[()]:
        """Return no feature maps."""
        return ()


def _unreadable(path_or_id: object, error: Exception) -> UserError:
    said = str(error).strip().splitlines()[0]
    return UserError(f"no CLIPModel could be loaded from {path_or_id}: {said}")
