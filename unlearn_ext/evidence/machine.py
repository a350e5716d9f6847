"""The versions and the machine that a number was computed with."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from .._utils import distributed
from .._version import __version__

__all__ = ["conditions", "differences", "merged"]

_LIBRARIES = ("numpy", "diffusers", "transformers", "safetensors", "pillow")
_SEVERAL = "several"


def conditions(device: str) -> dict[str, Any]:
    """Return versions and properties of the machine on which the last bits of f1 and f2 may depend.

    Neither the machine's name nor its user is among them.

    Args:
        device: device of the model, as in torch.
    """
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else None
    return {
        "unlearn_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in _LIBRARIES},
        "system": platform.system(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if distributed.several() else 1,
        "device": device,
        "gpu": gpu,
    }


def merged(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return the conditions of a folder that was written under both; what differs becomes ``several``."""
    return {name: value if value == before.get(name) else _SEVERAL for name, value in now.items()}


def differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs, as ``torch 2.13.0, was 2.12.0``."""
    return [
        f"{name} {now[name]}, was {recorded[name]}" for name in now if name in recorded and now[name] != recorded[name]
    ]


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
