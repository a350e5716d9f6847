"""Problems with a few parameters: quadratics with known noise, and logistic regression with a bounded norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .problem import Problem

EXAMPLES, DIMENSIONS = 1024, 20


def quadratic(sigma: float) -> Problem:
    """Return ½‖θ − u‖² ≤ ε with noise; the objective is ½‖θ‖², whose minimum is also the start.

    Args:
        sigma: standard deviation of one example's constraint value, and of its gradient, as a share of the gap at the
            start and of the gradient's norm there.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        drawn = torch.randn(EXAMPLES, *shape, generator=generator)
        return drawn - drawn.mean(0)

    u = torch.full((DIMENSIONS,), DIMENSIONS**-0.5)  # ‖u‖ = 1, so the constraint starts at ½
    theta, epsilon = nn.Parameter(torch.zeros(DIMENSIONS)), 0.1
    values, slopes, pulls = noise() * sigma * 0.4, noise(DIMENSIONS), noise(DIMENSIONS)
    slopes, pulls = slopes * sigma * DIMENSIONS**-0.5, pulls * sigma * DIMENSIONS**-0.5

    def constraint(i: Tensor) -> Tensor:
        away = theta - u
        return away.square().sum() / 2 + slopes[i].mean(0) @ away + values[i].mean()

    def objective(i: Tensor) -> Tensor:
        return theta.square().sum() / 2 + pulls[i].mean(0) @ theta

    return Problem([theta], constraint, objective, EXAMPLES, epsilon, {"EpsilonSGD": 0.05, "EpsilonAdamW": 3e-3})


def norm_bounded_logistic() -> Problem:
    """Return logistic regression with ‖w‖² ≤ 1: the constraint has no noise, its objective has."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, DIMENSIONS, generator=generator)
    y = (x[:, 0] + x[:, 1] + torch.randn(EXAMPLES, generator=generator) > 0).float()
    theta = nn.Parameter(torch.zeros(DIMENSIONS))  # the constraint is inactive at first
    return Problem(
        [theta],
        lambda i: theta.square().sum(),
        lambda i: F.binary_cross_entropy_with_logits(x[i] @ theta, y[i]),
        EXAMPLES,
        1.0,
        {"EpsilonSGD": 0.1, "EpsilonAdamW": 3e-3},
    )
