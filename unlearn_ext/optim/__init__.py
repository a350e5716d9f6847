"""Optimizers that minimise an objective subject to one constraint, solved in the metric they step with."""

from .adamw import EpsilonAdamW
from .control import EpsilonGap, GradientNorm, StepStats
from .projection import EpsilonProjection
from .sgd import EpsilonSGD

__all__ = ["EpsilonAdamW", "EpsilonGap", "EpsilonProjection", "EpsilonSGD", "GradientNorm", "StepStats"]


def __dir__() -> list[str]:
    return __all__
