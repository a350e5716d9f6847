"""Training settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch

from ..data.storage import MEMORY
from ..errors import UserError

__all__ = ["PRECISIONS", "Settings"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """Training settings of one run or sweep; the defaults suit the small built-in models.

    Attributes:
        lr: learning rate of AdamW. It increases linearly over the first ten steps of a run, is constant for half of the
            steps of an anchor, and then decreases linearly to 0.
        steps: optimizer steps of an anchor of a sweep; a run to one ε takes three times as many. None: see
            :func:`unlearn_ext.unlearning.schedule.steps_per_anchor`.
        batch_size: number of forget images and of retain images in each minibatch; without gradient, four times as many
            are encoded at once.
        rate: fraction of the gap f1 − ε that a step closes.
        tolerance: |f1 − ε| over the whole forget set up to which a run is not corrected, as a fraction of the
            unmodified model's f1.
        sharpness: radius ρ around the encoder's parameters; ∇f1 is that of the worst neighbour, see
            :func:`unlearn_ext.sharpness`, so that further training brings back less of the forgotten. 0: ∇f1 itself.
            Baselines ignore it.
        lora: rank of a low-rank adapter of the encoder, which is trained instead of its weights, see
            :class:`unlearn_ext.models.adapters.Adapted`. None: the encoder itself is trained.
        seed: random seed of minibatches, noise images and augmentation.
        precision: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` for torch's automatic mixed precision; with
            float16, losses are scaled.
        compile: compile the encoder with ``torch.compile`` for training.
        memory: size in GiB above which cached targets are stored in a file.

    Raises:
        UserError: the precision is unknown, or a number is out of range.
    """

    lr: float = 1e-3
    steps: int | None = None
    batch_size: int = 64
    rate: float = 0.1
    tolerance: float = 0.007
    sharpness: float = 0.0
    lora: int | None = None
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    memory: float = MEMORY

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"there is no precision `{self.precision}`; known: {', '.join(PRECISIONS)}.")
        for name, is_right, rule in _RULES:
            value = getattr(self, name)
            if value is None and name in ("steps", "lora"):
                continue
            if not isinstance(value, Integral if rule.startswith("a whole") else Real) or not is_right(value):
                raise UserError(f"{name} is {value!r}; it must be {rule}.")


_RULES = (
    ("lr", lambda lr: 0 <= lr < math.inf, "a finite number, 0 or more"),
    ("steps", lambda steps: steps > 0, "a whole number, 1 or more"),
    ("batch_size", lambda size: size > 0, "a whole number, 1 or more"),
    ("rate", lambda rate: 0 < rate <= 1, "a number above 0, 1 at most"),
    ("tolerance", lambda tolerance: tolerance >= 0, "a number, 0 or more"),
    ("sharpness", lambda rho: 0 <= rho < math.inf, "a finite number, 0 or more"),
    ("lora", lambda rank: rank > 0, "a whole number, 1 or more"),
    ("seed", lambda seed: 0 <= seed < 2**63, "a whole number, 0 or more and below 2**63"),
    ("memory", lambda memory: memory >= 0, "a number, 0 or more"),
)
