"""The schedule of runs and sweeps: the ε of the anchors, and the numbers of steps."""

from __future__ import annotations

from dataclasses import dataclass

from .objectives import Objectives

__all__ = ["SCHEDULE", "Schedule", "steps_per_anchor"]


@dataclass(frozen=True)
class Schedule:
    """Constants of runs and sweeps; docs/theory.md has the measurements for each.

    Attributes:
        anchors: ε of the anchors, as fractions of the unmodified model's f1, from the least to the most forgotten. At
            the last one, ε = 0, f1 converges to f1*.
        epochs_per_anchor: epochs over the larger of the two image sets, if the settings give no number of steps.
        most_steps_per_anchor: upper bound on the number of steps from ``epochs_per_anchor``.
        anchors_per_run: length of a run to one ε, in multiples of an anchor's steps; a run starts farther from its ε
            than an anchor.
        constraint_weight: weight of ∇f1² in AdamW's metric. ∇f1 is much larger than ∇f2 near a front; with weight 1,
            steps that reduce f2 would be short.
        psi_cap: upper bound on ψ, in units of ‖∇f1‖²; at 1, ψ is what a step along ∇f1 alone achieves. Without a bound,
            λ would grow without limit at f1*.
        f2_tolerance: f2 of the least forgotten model, in variances of the frozen latents; up to it, damage is
            negligible.
    """

    anchors: tuple[float, ...] = (0.6, 0.25, 0.06, 0.0)
    epochs_per_anchor: float = 2.5
    most_steps_per_anchor: int = 400
    anchors_per_run: int = 3
    constraint_weight: float = 0.001
    psi_cap: float = 1.0
    f2_tolerance: float = 1e-3


SCHEDULE = Schedule()


def steps_per_anchor(objectives: Objectives) -> int:
    """Return the number of steps of an anchor: that of the settings, or else a default that suits most models.

    The default is the larger of two numbers. First, f1 must have time to converge: a step closes the fraction ``rate``
    of the gap, so 3/rate steps close 95 % of it, and the learning rate is constant for half of the steps. Second, the
    images must be seen ``epochs_per_anchor`` times, within ``most_steps_per_anchor``.
    """
    settings, images = objectives.settings, max(len(objectives.forget), len(objectives.retain))
    by_epochs = min(round(SCHEDULE.epochs_per_anchor * images / settings.batch_size), SCHEDULE.most_steps_per_anchor)
    return settings.steps or max(round(6 / settings.rate), by_epochs)
