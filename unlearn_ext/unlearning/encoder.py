"""E as the machine runs it."""

from __future__ import annotations

import torch

from ..models import I2IModel
from .settings import PRECISIONS, Settings

__all__ = ["Encoder"]


class Encoder:
    """A model's ``encode`` under the settings' precision, its latents brought to float32.

    Args:
        model: whose encoder it is.
        settings: ``precision``, and ``compile`` for an encoder in training.
        training: compiled, if the settings say so. What is run once or with changing numbers of images is better not.
    """

    def __init__(self, model: I2IModel, settings: Settings, *, training: bool = False) -> None:
        self._encode = torch.compile(model.encode, dynamic=False) if training and settings.compile else model.encode
        self._device, self._dtype = model.device.type, PRECISIONS[settings.precision]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Latents, float32 [N, ...]."""
        with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
            return self._encode(*inputs).float()
