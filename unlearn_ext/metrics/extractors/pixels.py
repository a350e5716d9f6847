"""Images as a network wants them."""

import torch
import torch.nn.functional as F

__all__ = ["resized", "rgb"]


def rgb(images: torch.Tensor) -> torch.Tensor:
    """[N, 3, H, W] of images [N, 1 or 3, H, W]."""
    return images.expand(-1, 3, -1, -1)


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """[N, C, side, side], antialiased."""
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
