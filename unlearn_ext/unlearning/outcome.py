"""Warnings about what a run was asked for, and what it reached."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from .history import History

__all__ = ["warn_if_missed", "warn_if_outside", "warn_if_skipped"]


def warn_if_outside(epsilon: float, lowest: float, original: float) -> None:
    """Warn when ε cannot be reached, or asks for nothing.

    Args:
        epsilon: ε.
        lowest: f1 of the most forgotten model; 0 where that is not known.
        original: f1 of the unmodified model.
    """
    if epsilon < lowest:
        warnings.warn(
            f"ε = {epsilon:.4g} is below f1 = {lowest:.4g}, the least that can be reached: the model will forget as "
            "far as it can, f1 will end above ε, and the retained images will pay for it.",
            stacklevel=3,
        )
    elif epsilon > original:
        warnings.warn(
            f"ε = {epsilon:.4g} is above f1 = {original:.4g} of the unmodified model: the constraint asks for nothing, "
            "so the model stays as it is.",
            stacklevel=3,
        )


def warn_if_missed(epsilon: float, f1: float, tolerance: float) -> None:
    """Warn when f1 ended above ε by more than the tolerance."""
    if f1 - epsilon > tolerance:
        warnings.warn(
            f"ε = {epsilon:.4g} was not reached: f1 is {f1:.4g}. Either this encoder cannot forget that much of these "
            "images, or it needs more steps (--steps).",
            stacklevel=3,
        )


def warn_if_skipped(histories: Iterable[History]) -> None:
    """Warn when steps were skipped because a number was not finite."""
    rows = [row for history in histories for row in history.rows()]
    if skipped := sum(row[-1] for row in rows):
        warnings.warn(
            f"{skipped} of {len(rows)} steps met a number that is not finite, and were skipped; the others are sound.",
            stacklevel=3,
        )
