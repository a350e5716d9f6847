"""Batch size, gradients and images that an experiment spends on one family."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..demo import CHOICES
from ..unlearning.schedule import SCHEDULE
from ..unlearning.settings import Settings

__all__ = ["Effort"]


@dataclass(frozen=True)
class Effort:
    """Batch size, gradients and images for one family.

    Attributes:
        batch_size: images per minibatch, of forget and of retain images each.
        pairs: gradient pairs in each sweep. The search uses the same number, since the best settings of short sweeps
            are not the best of long ones. Must be divisible by the number of our anchors and by the number of weights
            of a grid, so that every method uses all pairs.
        share: share of the images of each set that unlearning and validation use; pretraining uses all images.
    """

    batch_size: int
    pairs: int
    share: float

    def settings(self, family: str, seed: int) -> Settings:
        """Return the settings that a family's search starts from, with the steps of one of our anchors."""
        steps = self.pairs // len(SCHEDULE.anchors)
        return replace(CHOICES[family].settings, batch_size=self.batch_size, steps=steps, seed=seed)
