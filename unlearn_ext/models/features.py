"""Features of several layers as one latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["joined"]


def joined(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return features [N, ...] of several layers as one tensor [N, D]; each has the same weight in a mean over D."""
    flat = [feature.flatten(1) for feature in features]
    total = sum(feature.shape[1] for feature in flat)
    return torch.cat([f * (total / (len(flat) * f.shape[1])) ** 0.5 for f in flat], 1)
