"""The identity of a run: all that its result depends on. Runs with the same identity end with the same models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from .._utils.tensor_hash import tensors_sha256
from .._version import __version__
from ..data.augment import Augment
from ..models import I2IModel
from ..models.sharding import undivided
from ..tasks import Corruption
from .settings import Settings

__all__ = ["identity", "known", "seen", "weights_digest"]


def known(family: str, settings: Settings, **asked: Any) -> dict[str, Any]:
    """Return the part of :func:`identity` that is known before images and model are loaded.

    Args:
        family: family of the model.
        settings: training settings.
        asked: other options; numbers, strings and lists of them.
    """
    trained = {name: value for name, value in asdict(settings).items() if name != "memory"}
    return {"version of unlearn_ext": __version__, "family": family, **trained, **asked}


def seen(images: Mapping[str, torch.Tensor], task: Corruption, augment: Augment | None) -> dict[str, Any]:
    """Return the part of :func:`identity` that is known before the model is loaded.

    Args:
        images: image sets by name, each uint8 [N, C, H, W], or float32 in [-1, 1].
        task: the task T; its output for fixed noise identifies it, as it does the augmentation.
        augment: augmentation of training images.
    """
    first = next(iter(images.values()))
    shape, device = first.shape[1:], first.device
    noise = (torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
    augmented = None if augment is None else tensors_sha256(*(augment(noise, draw) for draw in range(1, 5)))
    digests = {name: tensors_sha256(part) for name, part in images.items()}
    return {"task": tensors_sha256(task(noise)), "augmentation": augmented, **digests}


def identity(
    model: I2IModel,
    images: Mapping[str, torch.Tensor],
    task: Corruption,
    augment: Augment | None,
    settings: Settings,
    **asked: Any,
) -> dict[str, Any]:
    """Return all that the result of a run depends on, under names that messages show to the user.

    Args:
        model: the model before unlearning.
        images: image sets by name, each uint8 [N, C, H, W], or float32 in [-1, 1].
        task: the task T.
        augment: augmentation of training images.
        settings: training settings.
        asked: other options; numbers, strings and lists of them.
    """
    whole = {"model": weights_digest(model), "configuration of the model": _configuration(model)}
    return {**known(model.family, settings, **asked), **whole, **seen(images, task, augment)}


def weights_digest(model: I2IModel) -> str:
    """Return a digest of all weights of a model, hexadecimal; of a sharded model, every process must ask for it."""
    return tensors_sha256(*model.module.state_dict().values())


def _configuration(model: I2IModel) -> str:
    """Return a digest of a model's properties other than weights: library configurations and tuples of numbers."""
    model = undivided(model)
    parts = {**getattr(model, "__dict__", {}), "module": model.module}
    said: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(config := getattr(part, "config", None), Mapping):
            # Keys with a leading underscore record where the model was loaded from and by which release.
            said[name] = {key: value for key, value in config.items() if not key.startswith("_")}
        elif isinstance(part, tuple):
            said[name] = part
    text = json.dumps(said, sort_keys=True, default=repr)  # tuples and lists give the same text
    return hashlib.sha256(text.encode()).hexdigest()[:16]
