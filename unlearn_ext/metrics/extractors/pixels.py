"""Conversion of images to the input format of a network."""

import torch
import torch.nn.functional as F

__all__ = ["resized", "rgb"]


def rgb(images: torch.Tensor) -> torch.Tensor:
    """Return RGB images [N, 3, H, W] of images [N, 1 or 3, H, W]."""
    return images.expand(-1, 3, -1, -1)


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return images resized to [N, C, side, side], with antialiasing."""
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
