"""The schedule of runs and sweeps: towards which ε a model is trained, and for how many steps."""

from __future__ import annotations

from dataclasses import dataclass

from .objectives import Objectives

__all__ = ["SCHEDULE", "Schedule", "steps_per_anchor"]


@dataclass(frozen=True)
class Schedule:
    """Constants of runs and sweeps; docs/theory.md has what was measured of each.

    Attributes:
        anchors: ε of the anchors, as shares of the unmodified model's f1, from the least to the most forgotten. The
            last one asks for everything, and comes to rest at f1*.
        epochs_per_anchor: passes over the larger of the two image sets, where the settings give no number of steps.
        most_steps_per_anchor: bound on the steps that follow from ``epochs_per_anchor``.
        anchors_per_run: length of a run to one ε, in the steps of an anchor; it starts farther from ε than an anchor.
        constraint_weight: weight of ∇f1² in AdamW's metric. ∇f1 is much larger than ∇f2 near a front; with weight 1,
            steps on f2 would be short.
        psi_cap: bound on ψ, in ‖∇f1‖². 1 is what a step along ∇f1 alone gives; without it, λ would grow without bound
            at f1*.
        f2_tolerance: f2 of the least forgotten model, in variances of the frozen latents: what counts as no damage.
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
    """Return the settings' number of steps or, where they give none, as many as suit an unknown model.

    f1 must have time to arrive: a step closes ``rate`` of the gap, so 3/rate steps close 95 % of it, and the learning
    rate is held for half of the steps. And the images must be seen often enough: ``epochs_per_anchor`` times.
    """
    settings, images = objectives.settings, max(len(objectives.forget), len(objectives.retain))
    by_epochs = min(round(SCHEDULE.epochs_per_anchor * images / settings.batch_size), SCHEDULE.most_steps_per_anchor)
    return settings.steps or max(round(6 / settings.rate), by_epochs)
