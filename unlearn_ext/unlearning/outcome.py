"""Warnings about an ε that cannot be reached or was missed, and about skipped steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from .history import History

__all__ = ["warn_if_missed", "warn_if_outside", "warn_if_skipped"]


def warn_if_outside(epsilon: float, lowest: float, original: float) -> None:
    """Warn if ε cannot be reached, or has no effect.

    Args:
        epsilon: ε.
        lowest: f1 of the most forgotten model; 0 if not known.
        original: f1 of the unmodified model.
    """
    if epsilon < lowest:
        warnings.warn(
            f"ε = {epsilon:.4g} is below f1 = {lowest:.4g}, the least that can be reached: f1 will end above ε, and "
            "the damage to the retained images will be high; choose a larger ε.",
            stacklevel=3,
        )
    elif epsilon > original:
        warnings.warn(
            f"ε = {epsilon:.4g} is above f1 = {original:.4g} of the unmodified model: the constraint has no effect, so "
            "the model stays as it is; choose a smaller ε.",
            stacklevel=3,
        )


def warn_if_missed(epsilon: float, f1: float) -> None:
    """Warn if f1 ended above ε."""
    if f1 > epsilon:
        warnings.warn(
            f"ε = {epsilon:.4g} was not reached: f1 is {f1:.4g}. Either this encoder cannot forget that much of these "
            "images, or it needs more steps (--steps).",
            stacklevel=3,
        )


def warn_if_skipped(histories: Iterable[History]) -> None:
    """Warn if steps were skipped because a value was not finite."""
    rows = [row for history in histories for row in history.rows()]
    if skipped := sum(row[-1] for row in rows):
        warnings.warn(
            f"{skipped} of {len(rows)} steps were skipped because a value was not finite; the other steps are valid.",
            stacklevel=3,
        )
