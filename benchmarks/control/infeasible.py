"""Convex problems whose ε is below the constraint's infimum: such an ε may cost time and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .problem import Problem

INFIMUM = 1.0
STEPS = 2000


def bowl(curvature: float = 1.0, spread: float = 1.0, below: float = 1.0, scale: float = 1.0) -> Problem:
    """Return a quadratic constraint with infimum 1·scale, far from the objective's minimum.

    Args:
        curvature: largest second derivative of the constraint.
        spread: ratio of the largest and the smallest second derivative.
        below: distance of ε below the infimum, in units of the infimum.
        scale: factor of constraint and ε.
    """
    theta = nn.Parameter(torch.zeros(10))
    curvatures = curvature * torch.logspace(0, -math.log10(spread), 10)

    def constraint(i: Tensor) -> Tensor:
        return scale * (INFIMUM + (curvatures * (theta - 1).square()).sum() / 2)

    return Problem(
        [theta],
        constraint,
        lambda i: (theta + 1).square().sum() / 2,
        1,
        scale * INFIMUM * (1 - below),
        {"EpsilonSGD": 0.05, "EpsilonAdamW": 1e-2},
        STEPS,
    )


def classes() -> Problem:
    """Return the loss of logistic regression on classes that overlap; ε = 0, and the infimum is found by L-BFGS."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    sign = torch.where(x[:, 0] + 2 * torch.randn(200, generator=generator) > 0, 1.0, -1.0)
    theta = nn.Parameter(torch.full((5,), -2.0))
    return Problem(
        [theta],
        lambda i: nn.functional.softplus(-sign * (x @ theta)).mean(),
        lambda i: (theta + 2).square().sum() / 2,
        1,
        0.0,
        {"EpsilonSGD": 0.1, "EpsilonAdamW": 1e-2},
        STEPS,
    )


INFEASIBLE: dict[str, Callable[[], Problem]] = {
    "bowl": bowl,
    "bowl, ε far below": partial(bowl, below=10.0),
    "bowl, ill-conditioned": partial(bowl, spread=100.0),
    "bowl, c · 1000": partial(bowl, scale=1000.0, curvature=0.01),
    "bowl, c / 1000": partial(bowl, scale=1e-3),
    "logistic loss": classes,
}


@dataclass
class Harm:
    """What an infeasible ε does.

    Attributes:
        start: the constraint before the first step.
        highest: its largest value during the run.
        end: its value at the end.
        infimum: its infimum.
        largest_lam: the largest λ.
    """

    start: float
    highest: float
    end: float
    infimum: float
    largest_lam: float

    @property
    def harmless(self) -> bool:
        """Whether c never rose above its start, ended within 5 % of its infimum, and λ stayed finite."""
        rose = not self.highest <= self.start * (1 + 1e-6)
        return not rose and self.end <= 1.05 * self.infimum and math.isfinite(self.largest_lam)


def infimum(problem: Problem) -> float:
    """Return the least value of the constraint, by L-BFGS from the problem's start; the parameters are restored."""
    saved = [p.detach().clone() for p in problem.params]
    every = torch.arange(problem.examples)
    solver = torch.optim.LBFGS(problem.params, max_iter=500, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure() -> Tensor:
        solver.zero_grad()
        value = problem.constraint(every)
        value.backward()
        return value

    solver.step(closure)
    least = problem.measure()
    solver.zero_grad()
    with torch.no_grad():
        for p, before in zip(problem.params, saved, strict=True):
            p.copy_(before)
    return least


def run(problem: Problem, make: Callable[[Problem], Any]) -> Harm:
    """Train with all examples; the problem is changed."""
    least, every = infimum(problem), torch.arange(problem.examples)
    optimizer, start = make(problem), problem.measure()
    highest, largest = start, 0.0
    for _ in range(problem.steps):
        value = problem.constraint(every)
        value.backward()
        optimizer.hold_constraint(value)
        problem.objective(every).backward()
        optimizer.step()
        optimizer.zero_grad()
        highest = max(highest, value.item()) if math.isfinite(value.item()) else math.inf
        largest = max(largest, optimizer.stats.lam.item())
    return Harm(start, highest, problem.measure(), least, largest)
