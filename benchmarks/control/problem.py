"""What a problem of the noise suite consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Problem:
    """Minimise the objective subject to constraint ≤ ε, where both are means over examples.

    Attributes:
        params: what is optimised.
        constraint: examples (int64 [B]) → constraint over them, 0-d. Its mean over minibatches is the full-data value,
            unless ``biased``.
        objective: the same of the objective.
        examples: number of examples.
        epsilon: ε.
        lr: learning rate of each optimizer, by its name.
        steps: number of steps.
        weight_decay: weight decay of both optimizers.
        cosine: whether the learning rate falls to 0 along a cosine.
        biased: why a minibatch's constraint has another mean than the full-data value; empty if it has not.
        full: full-data value of the constraint, 0-d; by default ``constraint`` of all examples.
    """

    params: list[torch.nn.Parameter]
    constraint: Callable[[Tensor], Tensor]
    objective: Callable[[Tensor], Tensor]
    examples: int
    epsilon: float
    lr: dict[str, float]
    steps: int = 2000
    weight_decay: float = 0.0
    cosine: bool = False
    biased: str = ""
    full: Callable[[], Tensor] | None = None

    @torch.no_grad()
    def measure(self) -> float:
        """Return the constraint over all examples."""
        return (self.full() if self.full else self.constraint(torch.arange(self.examples))).item()
