"""Metrics of pairs of images, an original and a generated one, over the hole: the pixels that the task hides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..errors import require
from ..tasks import Task
from ..unlearning.hole import RANGE, hole_of, mean_over, psnr_in_hole
from .extractors import Extractor
from .features import CHUNK

__all__ = ["hole_values"]


@torch.no_grad()
def hole_values(
    original: torch.Tensor, generated: torch.Tensor, task: Task, extractors: Sequence[Extractor] = ()
) -> dict[str, torch.Tensor]:
    """Compute PSNR, SSIM and distances of feature maps for each image, over the hole only.

    Outside the hole, generated pixels are replaced with the original ones, so they do not count; SSIM windows and
    receptive fields that cross the edge of the hole see the same pixels there in both images. If the task hides
    nothing, the whole image counts.

    Args:
        original: float32 [N, C, H, W] in [-1, 1].
        generated: the images generated from them, likewise, in the same order.
        task: the task T; its mask is the hole.
        extractors: extractors whose feature maps are compared, if they have any.

    Returns:
        float32 [N] each: ``psnr`` in dB, infinite if nothing differs; ``ssim`` with Gaussian windows of 11 pixels;
        ``perceptual:NAME``, the distance of the extractor's feature maps, with the features at each position scaled to
        length 1: like LPIPS (Zhang et al., arXiv 1801.03924), but with another network and without trained weights.
    """
    chunks = zip(original.split(CHUNK), generated.split(CHUNK), strict=True)
    values = [_values(real, made, task, extractors) for real, made in chunks]
    return {name: torch.cat([value[name] for value in values]) for name in values[0]}


def _values(
    original: torch.Tensor, generated: torch.Tensor, task: Task, extractors: Sequence[Extractor]
) -> dict[str, torch.Tensor]:
    hole = hole_of(original, task)
    made = torch.where(hole, generated, original)
    image = require("torchmetrics.functional.image", "metrics")
    _, ssim = image.structural_similarity_index_measure(made, original, data_range=RANGE, return_full_image=True)
    values = {"psnr": psnr_in_hole(original, made, task), "ssim": mean_over(ssim, hole)}
    for extractor in extractors:
        pairs = list(zip(extractor.maps(made), extractor.maps(original), strict=True))
        if pairs:
            values[f"perceptual:{extractor.name}"] = torch.stack([_distance(a, b, hole) for a, b in pairs]).mean(0)
    return values


def _distance(a: torch.Tensor, b: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Return the distance [N] of feature maps [N, c, h, w]; positions are weighted by their share of the hole."""
    apart = (F.normalize(a) - F.normalize(b)).square().sum(1, keepdim=True)
    return mean_over(apart, F.interpolate(hole.float(), apart.shape[-2:], mode="area"))
