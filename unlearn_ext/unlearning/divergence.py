"""When training has come to nothing: no number is finite any more, or the objectives are beyond all measure."""

from __future__ import annotations

import torch

from ..errors import UserError

__all__ = ["BEYOND", "WATCHED", "check"]

WATCHED = 10  # steps that are looked at together: the device is waited for only so often
# In variances of the latents, or of f1 at first. Latents of two unrelated images are 2 variances apart: at 100, nothing
# of the retained images is left, and no step leads back.
BEYOND = 100.0


def check(rows: torch.Tensor, first: float, step: int, scale: float | None) -> None:
    """Stops a run whose last steps all were skipped, or all saw an objective that has exploded.

    Args:
        rows: f1, f2, ψ, λ and whether it was skipped, float64 [``WATCHED``, 5], of the last steps.
        first: f1 at the first step of the run.
        step: number of the last step.
        scale: of the losses under float16, which is found by skipping steps: they are no fault until it has come down
            to 1. None in other precisions.

    Raises:
        UserError: it says what was seen and what to do.
    """
    skipped = bool(rows[:, 4].all())
    if skipped and (scale is None or scale <= 1):
        raise UserError(
            f"the last {WATCHED} of {step} steps met numbers that are not finite, and were skipped: the model is as it "
            "was before them, but cannot be trained any further like this; take a lower learning rate (--lr), look for "
            "images or weights that are not finite, or choose precision float32."
        )
    limit = BEYOND * max(1.0, first)  # 1 where the first is not finite
    for name, values in zip(("f1", "f2"), rows.T, strict=False):
        if not skipped and bool((values > limit).all()):
            raise UserError(
                f"{name} has grown to {values[-1]:.3g} after {step} steps, and {limit:.3g} is beyond all measure: the "
                "training diverges; take a lower learning rate (--lr), or a lower rate of the settings."
            )
