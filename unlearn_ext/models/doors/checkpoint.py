"""The content of a checkpoint file, as every door receives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: the file.
        weights: the flat state dict: each weight by its name in the original's layout.
        content: what else the file contains, such as ``args`` or ``hyper_parameters``; plain values.
        config: content of the configuration file that belongs to it; empty if there is none.
    """

    path: Path
    weights: Mapping[str, torch.Tensor]
    content: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
