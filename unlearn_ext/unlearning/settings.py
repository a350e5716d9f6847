"""How an encoder is trained, and how the machine is used for it."""

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
    """How one run or sweep is trained. The defaults suit the small built-in models.

    Attributes:
        lr: learning rate of AdamW, held for half of the steps of an anchor; then it falls linearly to 0. It rises to
            this over the first ten steps of a run.
        steps: optimizer steps of an anchor of a sweep; a run to one ε takes three times as many. None: see
            :func:`unlearn_ext.unlearning.schedule.steps_per_anchor`.
        batch_size: images in each minibatch, of forget and of retain images alike; four times as many are encoded at
            once where no gradient is needed.
        rate: share of the gap f1 − ε that a step closes.
        tolerance: |f1 − ε| over the whole forget set below which a run is not corrected, as a share of the unmodified
            model's f1.
        seed: of the minibatches, of the noise images and of augmentation.
        precision: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` for torch's automatic mixed precision; float16
            scales its losses.
        compile: run the encoder through ``torch.compile`` in training.
        memory: GiB of cached targets past which they lie in a file.

    Raises:
        UserError: there is no such precision, or a number is out of range.
    """

    lr: float = 1e-3
    steps: int | None = None
    batch_size: int = 64
    rate: float = 0.1
    tolerance: float = 0.007
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    memory: float = MEMORY

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"there is no precision `{self.precision}`; known: {', '.join(PRECISIONS)}.")
        for name, is_right, rule in _RULES:
            value = getattr(self, name)
            if name == "steps" and value is None:
                continue
            if not isinstance(value, Integral if rule.startswith("a whole") else Real) or not is_right(value):
                raise UserError(f"{name} is {value!r}; it must be {rule}.")


_RULES = (
    ("lr", lambda lr: 0 <= lr < math.inf, "a finite number, 0 or more"),
    ("steps", lambda steps: steps > 0, "a whole number, 1 or more"),
    ("batch_size", lambda size: size > 0, "a whole number, 1 or more"),
    ("rate", lambda rate: 0 < rate <= 1, "a number above 0, 1 at most"),
    ("tolerance", lambda tolerance: tolerance >= 0, "a number, 0 or more"),
    ("seed", lambda seed: 0 <= seed < 2**63, "a whole number, 0 or more and below 2**63"),
    ("memory", lambda memory: memory >= 0, "a number, 0 or more"),
)
