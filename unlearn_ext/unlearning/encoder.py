"""Encoder forward pass under autocast and torch.compile."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..models import I2IModel
from ..models.sharding import Sharded
from .settings import PRECISIONS, Settings

__all__ = ["Encoder"]


class Encoder:
    """A model's ``encode`` in the precision of the settings, with latents in float32.

    Args:
        model: the model.
        settings: ``precision``; ``compile`` is used only with ``training``.
        training: compile the encoder if the settings ask for it. Evaluation is not compiled, because it runs rarely or
            with changing batch sizes.

    Raises:
        UserError: a sharded model was to be compiled.
    """

    def __init__(self, model: I2IModel, settings: Settings, *, training: bool = False) -> None:
        if settings.compile and isinstance(model, Sharded):
            raise UserError("a model that is divided among processes cannot be compiled: leave out compile or fsdp.")
        self._encode = torch.compile(model.encode, dynamic=False) if training and settings.compile else model.encode
        self._device, self._dtype = model.device.type, PRECISIONS[settings.precision]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return latents, float32 [N, ...]."""
        with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
            return self._encode(*inputs).float()
