"""E of a U-Net of `diffusers`: its parameters, and its features as one latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["joined", "parameters_of_encoder"]


def parameters_of_encoder(unet: Any) -> list[torch.nn.Parameter]:
    """Return the parameters of the down blocks and of the middle block, if there is one."""
    parts = [part for part in (unet.down_blocks, unet.mid_block) if part is not None]
    return [parameter for part in parts for parameter in part.parameters()]


def joined(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return features [N, ...] of several layers as one tensor [N, D]; each has the same weight in a mean over D."""
    flat = [feature.flatten(1) for feature in features]
    total = sum(feature.shape[1] for feature in flat)
    return torch.cat([f * (total / (len(flat) * f.shape[1])) ** 0.5 for f in flat], 1)
