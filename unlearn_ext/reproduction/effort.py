"""What an experiment spends on one family."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..demo import CHOICES
from ..unlearning.schedule import SCHEDULE
from ..unlearning.settings import Settings

__all__ = ["Effort"]


@dataclass(frozen=True)
class Effort:
    """What is spent on one family.

    Attributes:
        batch_size: images in each minibatch, of forget and of retain images alike.
        pairs: of gradients in each sweep, those of the search included: what is best for short sweeps is not best for
            long ones. Divisible by the number of our anchors and by that of the weights of a ladder, so that every
            method takes all of them.
        share: of the images of each set that is unlearned on and validated with; pretraining sees all of them.
    """

    batch_size: int
    pairs: int
    share: float

    def settings(self, family: str, seed: int) -> Settings:
        """Return the settings that a family's search starts from, with the steps of an anchor of ours."""
        steps = self.pairs // len(SCHEDULE.anchors)
        return replace(CHOICES[family].settings, batch_size=self.batch_size, steps=steps, seed=seed)
