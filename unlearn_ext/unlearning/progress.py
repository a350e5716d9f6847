"""What a long run tells whoever watches it."""

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
        stage: what is being done: ``"pretrain"``, or the name of a point of the front, such as ``"eps-0.3000"``.
        index: number of the stage, from 0.
        total: number of stages.
        step: steps done in this stage.
        steps: steps planned so far; it grows when a run is corrected, ``step`` never falls.
        f1: forget objective of the last minibatch, in variances of the frozen latents; NaN before unlearning; of a
            baseline, its own loss.
        f2: retain objective of the last minibatch, same unit; while pretraining, the training loss; of a baseline,
            its own; NaN of what another process has finished.
        lam: multiplier λ of the last step; NaN before unlearning, and of a baseline.
    """

    stage: str
    index: int
    total: int
    step: int
    steps: int
    f1: float
    f2: float
    lam: float


Callback = Callable[[Progress], None]
OnStep = Callable[[int, int, StepStats, float], None]  # steps taken, steps planned so far, stats of the step, f2


def reporter(progress: Callback | None, stage: str, index: int = 0, total: int = 1) -> OnStep | None:
    """Return a callback of a trainer that reports its steps as progress of a stage; None where nobody listens."""
    if progress is None:
        return None

    def on_step(step: int, steps: int, stats: StepStats, f2: float) -> None:
        progress(Progress(stage, index, total, step, steps, stats.constraint.item(), f2, stats.lam.item()))

    return on_step


class Throttle:
    """Lets a report through at most ten times a second: reading f1, f2 and λ makes the host wait for the device."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds
        self._last = float("-inf")

    def due(self) -> bool:
        """True when enough time has passed since the last time this was True."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
