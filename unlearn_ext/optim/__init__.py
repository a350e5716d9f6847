"""Optimizers that minimise an objective subject to one constraint, solved in the metric they step with."""

from .adamw import EpsilonAdamW
from .projection import EpsilonProjection
from .sgd import EpsilonSGD

__all__ = ["EpsilonAdamW", "EpsilonProjection", "EpsilonSGD"]
