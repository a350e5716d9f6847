"""Estimates of the time that is left, from a few timed steps."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..unlearning.progress import Progress

__all__ = ["Estimate", "in_words"]

STEPS, SECONDS = 3, 2.0  # to be timed in a stage; the first step is left out, because it allocates and compiles
MIXED = 0.2  # time of a mixed model, as a fraction of that of a trained one


class Estimate:
    """An estimate of the time that is left until the last stage ends; it learns from each report."""

    def __init__(self) -> None:
        self._stage: tuple[str, int] | None = None
        self._begin, self._first, self._per_step = 0.0, 0, math.nan

    def __call__(self, now: Progress) -> float:
        """Return the seconds that are left after a report; NaN before enough steps were timed."""
        clock = time.monotonic()
        if self._stage != (now.stage, now.index):
            self._stage, self._begin, self._first = (now.stage, now.index), clock, now.step
        taken, spent = now.step - self._first, clock - self._begin
        if taken >= STEPS and spent >= SECONDS:
            self._per_step = spent / taken
        later = now.total - now.index - 1
        trained = later - now.mixed + MIXED * now.mixed
        return self._per_step * (now.steps - now.step + trained * now.steps)


def in_words(seconds: float, after: str = "") -> str:
    """Return a rounded time and what follows it, such as ``"about 4 minutes left"``; "" for NaN."""
    if math.isnan(seconds):
        return ""
    if seconds < 10:
        return f"a few seconds{after}"
    if seconds < 90:
        return f"about {10 * round(seconds / 10)} seconds{after}"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} minutes{after}"
    return f"about {seconds / 3600:.1f} hours{after}"
