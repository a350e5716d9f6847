"""Metrics of two sets of images from an extractor's features: FID, KID, IS, and the cosine similarity of pairs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import require
from .extractors import Extractor

__all__ = ["CHUNK", "LEAST", "SUBSETS", "compare", "extract", "left_out"]

CHUNK = 64  # images processed at once; limits memory
SUBSETS = 50  # of KID
LEAST = 8  # images for measures of sets; half of them are compared, and KID's subsets are half of that


@torch.no_grad()
def extract(extractor: Extractor, images: torch.Tensor) -> torch.Tensor:
    """Return the features [N, D] of any number of images, float32 [N, C, H, W] in [-1, 1]."""
    return torch.cat([extractor(chunk) for chunk in images.split(CHUNK)])


def compare(
    original: torch.Tensor, generated: torch.Tensor, extractor: Extractor, *, only_pairs: bool = False
) -> dict[str, float]:
    """Compare generated images with their originals by an extractor's features.

    FID and KID compare sets, and small sets bias FID upwards. So both compare every other original with the images
    generated from the remaining originals: two sets of equal size, without an image in common. As a result,
    ``compare(original, original, …)`` gives the values of a perfect model.

    Args:
        original: features [N, D] of the originals.
        generated: features [N, D] of the images generated from them, in the same order.
        extractor: the extractor of the features.
        only_pairs: leave out the measures that compare sets.

    Returns:
        ``fid``; ``kid`` and ``kid-spread``, its standard deviation over subsets; ``is`` of the generated images, if the
        extractor has classes; and ``cosine``, the mean over pairs. ``:`` and the extractor's name follow each name.
        With fewer than ``LEAST`` images only ``cosine``, see :func:`left_out`.

    Raises:
        UserError: the extra ``metrics`` is missing.
    """
    values = {} if only_pairs or left_out(len(original)) else _of_sets(original, generated, extractor)
    functional = require("torchmetrics.functional", "metrics")
    values["cosine"] = functional.cosine_similarity(generated, original, reduction="mean").item()
    return {f"{name}:{extractor.name}": value for name, value in values.items()}


def left_out(images: int) -> str:
    """Return a sentence on the measures that so few images leave out; "" if there are enough for all."""
    if images >= LEAST:
        return ""
    return (
        f"FID, KID and IS are left out: they need at least {LEAST} images of each set, for their covariances, subsets "
        f"and class shares, and the smaller set has {images}."
    )


def _of_sets(original: torch.Tensor, generated: torch.Tensor, extractor: Extractor) -> dict[str, float]:
    """Return the measures that compare whole sets of features."""
    half = len(original) // 2
    real, made = original[0 : 2 * half : 2], generated[1 : 2 * half : 2]
    kid, spread = _kid(real, made)
    values = {"fid": _fid(real, made), "kid": kid, "kid-spread": spread}
    logits = extractor.logits(generated)
    if logits is not None:
        values["is"] = _inception_score(logits)
    return values


class _Given(torch.nn.Identity):
    """The network that torchmetrics expects; it returns its input, which already is features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features


def _fid(real: torch.Tensor, made: torch.Tensor) -> float:
    """Return |μ − ν|² + tr(A + B − 2(AB)^½), for few images a thousand times as fast as torchmetrics' D×D root.

    With A = PᵀP and B = QᵀQ, the trace of the root is the sum of the singular values of PQᵀ, for any such P and Q.
    """
    means, roots = zip(*(_gaussian(features.double()) for features in (real, made)), strict=True)
    spread = sum(root.square().sum() for root in roots) - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return ((means[0] - means[1]).square().sum() + spread).item()


def _gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean [D] of features [N, D], and P [min(N, D), D] such that PᵀP is their covariance."""
    mean = features.mean(0)
    return mean, torch.linalg.qr((features - mean) / (len(features) - 1) ** 0.5, mode="r").R


def _kid(real: torch.Tensor, made: torch.Tensor) -> tuple[float, float]:
    with _apart():
        kid = require("torchmetrics.image.kid", "metrics").KernelInceptionDistance(
            _Given(real.shape[1]), subsets=SUBSETS, subset_size=min(1000, len(real) // 2)
        )
        kid.update(real.double(), real=True)
        kid.update(made.double(), real=False)
        mean, spread = kid.compute()
    return mean.item(), spread.item()


def _inception_score(logits: torch.Tensor) -> float:
    """Return IS over all images at once; ten splits of a small set would be too small to estimate class shares."""
    with _apart():
        score = require("torchmetrics.image.inception", "metrics").InceptionScore(_Given(logits.shape[1]), splits=1)
        score.update(logits.double())
        return score.compute()[0].item()


@contextmanager
def _apart() -> Iterator[None]:
    """Keep torchmetrics from using the caller's random number generator and from warning about intended settings."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(0)
        yield
