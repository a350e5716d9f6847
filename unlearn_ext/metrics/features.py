"""Two sets of images through an extractor's features: FID, KID, IS, and the cosine of pairs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import UserError, require
from .extractors import Extractor

__all__ = ["CHUNK", "LEAST", "SUBSETS", "compare", "extract"]

CHUNK = 64  # images looked at at once: bounds memory
SUBSETS = 50  # of KID
LEAST = 8  # images, below which KID has no subsets to speak of


@torch.no_grad()
def extract(extractor: Extractor, images: torch.Tensor) -> torch.Tensor:
    """Features [N, D] of any number of images, float32 [N, C, H, W] in [-1, 1]."""
    return torch.cat([extractor(chunk) for chunk in images.split(CHUNK)])


def compare(original: torch.Tensor, generated: torch.Tensor, extractor: Extractor) -> dict[str, float]:
    """How near generated images come to the originals, in the extractor's eyes.

    FID and KID compare sets, and small sets bias FID upwards. So both are taken between the features of every other
    original and those of what was made of the rest: as many on either side, none of the same image. Thereby
    ``compare(original, original, …)`` is the floor, what a perfect model would get.

    Args:
        original: features [N, D].
        generated: features [N, D] of what was made of the same images, in the same order.
        extractor: whose features they are.

    Returns:
        ``fid``; ``kid`` and ``kid-spread``, its standard deviation over subsets; ``is`` of the generated images, where
        the extractor knows classes; ``cosine``, the mean over pairs. Every name ends in ``:`` and the extractor's.

    Raises:
        UserError: fewer than ``LEAST`` images, or the extra ``metrics`` is missing.
    """
    if len(original) < LEAST:
        raise UserError(f"FID and KID need at least {LEAST} images of each kind, not {len(original)}.")
    half = len(original) // 2
    real, made = original[0 : 2 * half : 2], generated[1 : 2 * half : 2]
    kid, spread = _kid(real, made)
    values = {"fid": _fid(real, made), "kid": kid, "kid-spread": spread}
    logits = extractor.logits(generated)
    if logits is not None:
        values["is"] = _inception_score(logits)
    functional = require("torchmetrics.functional", "metrics")
    values["cosine"] = functional.cosine_similarity(generated, original, reduction="mean").item()
    return {f"{name}:{extractor.name}": value for name, value in values.items()}


class _Given(torch.nn.Identity):
    """Stands where torchmetrics expects the network: what it is given are features already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features


def _fid(real: torch.Tensor, made: torch.Tensor) -> float:
    """|μ − ν|² + tr(A + B − 2(AB)^½), of few images a thousand times as fast as torchmetrics, which takes a D×D root.

    With A = PᵀP and B = QᵀQ, that root has the singular values of PQᵀ, or of any factors with the same squares.
    """
    means, roots = zip(*(_gaussian(features.double()) for features in (real, made)), strict=True)
    spread = sum(root.square().sum() for root in roots) - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return ((means[0] - means[1]).square().sum() + spread).item()


def _gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] of features [N, D], and P [min(N, D), D], of which PᵀP is the covariance."""
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
    """Over all images at once: of ten splits, each of a small set would see too few to know the classes' shares."""
    with _apart():
        score = require("torchmetrics.image.inception", "metrics").InceptionScore(_Given(logits.shape[1]), splits=1)
        score.update(logits.double())
        return score.compute()[0].item()


@contextmanager
def _apart() -> Iterator[None]:
    """torchmetrics draws from the caller's random state, and warns of what is meant: kept features, a single split."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(0)
        yield
