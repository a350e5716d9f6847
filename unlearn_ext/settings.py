"""How an encoder is trained, and how the machine is used for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .data.storage import MEMORY
from .errors import UserError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """Of a run. The defaults suit the small built-in models.

    Attributes:
        lr: learning rate of AdamW, at the start; it falls linearly to 0 over a run. The rate at which ε is approached
            does not depend on it.
        steps: optimizer steps of a run, before corrections.
        batch_size: images in each minibatch, of forget and of retain images alike; four times as many are encoded at
            once where no gradient is needed.
        rate: share of the gap f1 − ε that a step closes.
        tolerance: |f1 − ε| over the whole forget set below which a run is not corrected, as a share of f1 before
            unlearning.
        seed: of the minibatches, of the noise images and of augmentation.
        precision: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` for torch's automatic mixed precision; float16
            scales its losses.
        compile: run the encoder through ``torch.compile`` in training.
        memory: GiB of cached targets past which they lie in a file.

    Raises:
        UserError: there is no such precision.
    """

    lr: float = 2e-3
    steps: int = 40
    batch_size: int = 64
    rate: float = 0.15
    tolerance: float = 0.007
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    memory: float = MEMORY

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"there is no precision `{self.precision}`; known: {', '.join(PRECISIONS)}.")
