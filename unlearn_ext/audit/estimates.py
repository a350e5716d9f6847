"""Measured numbers with 95 % confidence intervals that stay honest for few images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import require

__all__ = ["CONFIDENCE", "Estimate", "auc", "counted", "mean"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the number.
        low: lower end of its confidence interval; NaN if one image says nothing about the spread.
        high: upper end.
        images: the images that it was measured on, such as ``"200 images"``.
    """

    value: float
    low: float
    high: float
    images: str

    def __str__(self) -> str:
        known = f"{self.low:.3g} to {self.high:.3g}" if math.isfinite(self.low) else "no interval"
        return f"{known} ({self.images})"


def mean(values: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """Return the mean of independent values, with Student's interval.

    Args:
        values: one number per image, or per minibatch of images, [N].
        weights: number of images behind each value; one by default.
    """
    weights = np.ones(len(values)) if weights is None else weights
    count = int(weights.sum())
    value = float(np.average(values, weights=weights))
    half = math.nan
    if len(values) > 1:
        variance = np.average(np.square(values - value), weights=weights) / (len(values) - 1)
        half = float(_scipy().t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * math.sqrt(variance))
    return Estimate(value, value - half, value + half, counted(count))


def auc(one: np.ndarray, other: np.ndarray) -> Estimate:
    """Return the probability that a value of the first kind exceeds one of the second; ties count half.

    This is the area under the ROC curve. The interval is Newcombe's method 5 (Statistics in Medicine 25, 2006), which
    is not empty at 0 and at 1.

    Args:
        one: scores of the first kind, [N].
        other: scores of the second kind, [M].
    """
    above = (one[:, None] > other).mean() + (one[:, None] == other).mean() / 2
    low, high = _end(above, 0.0, len(one), len(other)), _end(above, 1.0, len(one), len(other))
    return Estimate(float(above), low, high, f"{len(one)} and {counted(len(other))}")


def counted(count: int) -> str:
    """Return a number of images in words."""
    return "1 image" if count == 1 else f"{count} images"


def _end(found: float, end: float, count: int, others: int) -> float:
    """Return the value farthest towards ``end`` for which the found AUC is not surprising, by bisection."""
    z = float(_scipy().norm.ppf((1 + CONFIDENCE) / 2))
    inside, outside = found, end
    for _ in range(60):
        middle = (inside + outside) / 2
        if abs(found - middle) <= z * math.sqrt(_variance(middle, count, others)):
            inside = middle
        else:
            outside = middle
    return inside


def _variance(area: float, count: int, others: int) -> float:
    """Return the variance of an AUC (Hanley and McNeil, 1982), with the mean number of images on both sides."""
    more = (count + others) / 2 - 1
    spread = 1 + more * (1 - area) / (2 - area) + more * area / (1 + area)
    return area * (1 - area) * spread / (count * others)


def _scipy() -> Any:
    return require("scipy.stats", "report")
