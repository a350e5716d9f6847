"""Progress reports of long runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..optim import StepStats

__all__ = ["Callback", "OnStep", "Progress", "Throttle", "reporter"]


@dataclass(frozen=True)
class Progress:
    """One report from a run.

    Attributes:
        stage: ``"pretrain"``, or the name of a point of the front, such as ``"eps-0.3000"``.
        index: number of the stage, from 0.
        total: number of stages.
        step: number of steps taken in this stage; it never decreases.
        steps: number of steps planned so far; it increases if a run is corrected.
        f1: what is left of the forgotten, for the last minibatch, in variances of the frozen latents; NaN before
            unlearning; for a baseline, its loss on forget images.
        f2: damage to the retained, for the last minibatch, in the same unit; while pretraining, the training loss; for
            a baseline, its loss on retain images; NaN for a stage that another process has finished.
        lam: multiplier λ of the last step; NaN before unlearning and for baselines.
        mixed: how many of the later stages are models that are mixed, not trained, and take little time.
    """

    stage: str
    index: int
    total: int
    step: int
    steps: int
    f1: float
    f2: float
    lam: float
    mixed: int = 0


Callback = Callable[[Progress], None]
OnStep = Callable[[int, int, StepStats, float], None]  # steps taken, steps planned so far, stats of the step, f2


def reporter(progress: Callback | None, stage: str, index: int = 0, total: int = 1, mixed: int = 0) -> OnStep | None:
    """Return a trainer's callback that reports its steps as progress of a stage; None without ``progress``."""
    if progress is None:
        return None

    def on_step(step: int, steps: int, stats: StepStats, f2: float) -> None:
        progress(Progress(stage, index, total, step, steps, stats.constraint.item(), f2, stats.lam.item(), mixed))

    return on_step


class Throttle:
    """A limit of ten reports per second, because reading f1, f2 and λ waits for the device."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds
        self._last = float("-inf")

    def due(self) -> bool:
        """Return whether a report is due; if so, start a new interval."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
