"""Recommend a model of a sweep: where more forgetting gains nothing visible, or where it begins to cost much.

Two marks on the front are computed. The **knee** is the point with the largest distance to the chord between the two
ends of the front, in coordinates scaled to [0, 1]: for a falling convex curve, the maximum of the difference curve of
Satopää et al., "Finding a 'Kneedle' in a Haystack" (ICDCS Workshops 2011), without its smoothing and its threshold. At
a smaller ε than that of the knee, damage grows faster. The **loss** is the largest ε at which the model has lost the
images to forget: at which ``LOST`` of the fall of the PSNR in their hole has happened, from the unmodified model to the
lowest of the sweep. The smaller of both is recommended: as much forgetting as is cheap, and more if the images are not
lost by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .ability import CLEAR, read_hole
from .dial import UNMODIFIED
from .hole import where
from .pareto import ParetoPoint
from .run_folder import RunFolder

__all__ = ["LOST", "Recommendation", "knee", "recommend"]

LOST = 0.9  # fraction of the fall of the PSNR
STRAIGHT = 0.02  # depth below the chord up to which a front counts as straight, as a fraction of its range


class Recommendation(NamedTuple):
    """A recommended model.

    Attributes:
        point: its name, which is that of its folder.
        epsilon: its ε.
        reason: the reason, in a few sentences.
    """

    point: str
    epsilon: float
    reason: str


def recommend(run: RunFolder) -> Recommendation:
    """Return the recommended model of a run, with the reason; for a single model, this model.

    Raises:
        UserError: the run's ``hole.csv`` cannot be read.
    """
    front = [point for point, dominated in zip(run.points, run.front.dominated, strict=True) if not dominated]
    if len(run.points) == 1:
        (only,) = run.points
        return _of(only, "It is the only model of this run.")
    original = float(run.metrics["f1_original"])
    cheap, lost = knee(front, original), _lost(front, read_hole(run.path))
    marks = [mark for mark in (cheap, lost and lost.point) if mark]
    if not marks:
        least = min(run.asked, key=lambda point: point.epsilon)
        return _of(least, "the front has no knee; this is the smallest ε that was asked for.")
    chosen = min(marks, key=lambda point: point.f1)
    share = f"ε is {100 * chosen.epsilon / original:.2g} % of the unmodified model's f1. "
    of_pictures = _about_pictures(chosen, lost, where(run.metrics["task"]))
    return _of(chosen, share + " ".join([*_about_cost(chosen, cheap, front), *of_pictures]))


def knee(front: Sequence[ParetoPoint], f1_original: float) -> ParetoPoint | None:
    """Return the knee of a front; None if the front is straight or concave, or has fewer than three points.

    Args:
        front: points that are not dominated, in ascending order of f1.
        f1_original: f1 of the unmodified model, whose f2 is 0: the other end of the front.
    """
    if len(front) < 3:
        return None
    low, high = front[0].f1, max(point.f2 for point in front)
    span = f1_original - low
    if not (span > 0 and high > 0):
        return None
    depth = {point: 1 - (point.f1 - low) / span - point.f2 / high for point in front}
    deepest = max(front, key=lambda point: depth[point])
    return deepest if depth[deepest] > STRAIGHT else None


class _Lost(NamedTuple):
    """From where the hole is lost, and the PSNR of the unmodified model, of each model, and the lowest, in dB."""

    point: ParetoPoint | None
    before: float
    psnr: dict[str, float]
    lowest: float


def _lost(front: Sequence[ParetoPoint], psnr: dict[str, float]) -> _Lost | None:
    """Return from where the hole is lost; without a point if no model loses it, None if it was not measured."""
    if UNMODIFIED not in psnr or not all(point.name in psnr for point in front):
        return None
    before, lowest = psnr[UNMODIFIED], min(psnr[point.name] for point in front)
    if before - lowest < CLEAR:
        return _Lost(None, before, psnr, lowest)
    enough = before - LOST * (before - lowest)
    return _Lost(max((p for p in front if psnr[p.name] <= enough), key=lambda p: p.f1), before, psnr, lowest)


def _about_cost(chosen: ParetoPoint, cheap: ParetoPoint | None, front: Sequence[ParetoPoint]) -> list[str]:
    if cheap is None:
        return ["The front has no knee."]
    most = front[0]
    if chosen is cheap and chosen is not most:
        return [
            f"This is the knee of the front: with a smaller ε, damage to the retained (f2) rises faster, from "
            f"{chosen.f2:.4f} here to {most.f2:.4f} at the most forgotten model."
        ]
    if chosen is cheap:
        return [f"This is the knee of the front and the most forgotten model (f2 {chosen.f2:.4f})."]
    return [
        f"The knee of the front, from where damage rises faster, is at ε = {cheap.epsilon:.4f}; from there to here, f2 "
        f"rises from {cheap.f2:.4f} to {chosen.f2:.4f}."
    ]


def _about_pictures(chosen: ParetoPoint, lost: _Lost | None, measured: str) -> list[str]:
    if lost is None:
        return []
    here = lost.psnr[chosen.name]
    if lost.point is None:
        return [
            f"But no model loses the images to forget: their PSNR {measured} is {lost.before:.1f} dB before and "
            f"{lost.lowest:.1f} dB at worst."
        ]
    words = "the model has lost" if chosen is not lost.point else "from here on the model has lost"
    return [
        f"As measured by its own pictures, {words} the images to forget: PSNR {measured} {here:.1f} dB, "
        f"{lost.before:.1f} dB before, {lost.lowest:.1f} dB at the lowest."
    ]


def _of(point: ParetoPoint, reason: str) -> Recommendation:
    return Recommendation(point.name, point.epsilon, reason)
