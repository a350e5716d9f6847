"""Detection of failed training: values that are not finite, or objectives that have exploded."""

from __future__ import annotations

import torch

from ..errors import UserError

__all__ = ["BEYOND", "WATCHED", "check"]

WATCHED = 10  # steps per check; each check waits for the device
# Limit of f1 and f2, in variances of the latents, or as a multiple of the first f1 if that is above 1. The latents of
# two unrelated images are 2 variances apart. At 100, nothing of the retained images is left; training cannot recover.
BEYOND = 100.0


def check(rows: torch.Tensor, first: float, step: int, scale: float | None) -> None:
    """Stop a run if its last steps were all skipped, or if an objective exceeded the limit in all of them.

    Args:
        rows: f1, f2, ψ, λ and the skipped flag of the last steps, float64 [``WATCHED``, 5].
        first: f1 at the first step of the run.
        step: number of the last step.
        scale: loss scale under float16, else None. The loss scaler skips steps to find its scale, so skipped steps are
            an error only once the scale is down to 1.

    Raises:
        UserError: training has failed.
    """
    skipped = bool(rows[:, 4].all())
    if skipped and (scale is None or scale <= 1):
        raise UserError(
            f"the last {WATCHED} of {step} steps were skipped because values were not finite: the model is as it was "
            "before them, but training cannot continue; use a lower learning rate (--lr), look for images or weights "
            "that are not finite, or choose precision float32."
        )
    limit = BEYOND * max(1.0, first)  # max returns 1 if the first f1 is NaN
    for name, values in zip(("f1", "f2"), rows.T, strict=False):
        if not skipped and bool((values > limit).all()):
            raise UserError(
                f"{name} has grown to {values[-1]:.3g} after {step} steps, above the limit of {limit:.3g}: the "
                "training diverges; use a lower learning rate (--lr), or a lower `rate` in the settings."
            )
