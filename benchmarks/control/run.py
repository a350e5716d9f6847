"""Run one problem with one optimizer and one batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .problem import Problem

MEASUREMENTS = 20  # of the full-data constraint, during the last tenth of the steps


@dataclass
class Outcome:
    """The constraint over all examples.

    Attributes:
        epsilon: ε.
        start: the value before the first step.
        end: the mean over the last tenth of the run.
        seconds: duration of the run.
    """

    epsilon: float
    start: float
    end: float
    seconds: float

    @property
    def tolerance(self) -> float:
        """The larger of 5 % of ε and 1 % of the range |start − ε|."""
        return max(0.05 * abs(self.epsilon), 0.01 * abs(self.start - self.epsilon))

    @property
    def met(self) -> bool:
        """Whether the end is within the tolerance of ε."""
        return abs(self.end - self.epsilon) <= self.tolerance  # False for NaN


def shuffled(examples: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield minibatches without end, as a ``DataLoader`` with ``shuffle`` does; all examples if ``size`` is 0."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(examples, generator=generator)
        yield from order.split(size)[: max(examples // size, 1)] if 0 < size < examples else [order]


def run(problem: Problem, make: Callable[[Problem], Any], batch: int, seed: int = 0) -> Outcome:
    """Train, with independent minibatches for the constraint and the objective.

    Args:
        problem: the problem; it is changed.
        make: returns the optimizer of a problem.
        batch: size of the minibatches; 0: all examples.
        seed: random seed of the minibatches and of dropout.
    """
    torch.manual_seed(seed)
    optimizer, begin, start = make(problem), time.perf_counter(), problem.measure()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, problem.steps) if problem.cosine else None
    forget, retain = (shuffled(problem.examples, batch, 2 * seed + side) for side in range(2))
    measured, last = [], problem.steps // 10
    every = max(last // MEASUREMENTS, 1)
    for step in range(problem.steps):
        value = problem.constraint(next(forget))
        value.backward()
        optimizer.hold_constraint(value)
        problem.objective(next(retain)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()
        remaining = problem.steps - 1 - step
        if remaining < last and remaining % every == 0:
            measured.append(problem.measure())
    return Outcome(problem.epsilon, start, sum(measured) / len(measured), time.perf_counter() - begin)
