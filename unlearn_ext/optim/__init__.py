"""Optimizers that minimise an objective under one constraint; each step solves a QP in the optimizer's own metric."""

from .adamw import EpsilonAdamW
from .control import EpsilonGap, GradientNorm, StepStats
from .neighbour import sharpness
from .projection import EpsilonProjection
from .sgd import EpsilonSGD

__all__ = ["EpsilonAdamW", "EpsilonGap", "EpsilonProjection", "EpsilonSGD", "GradientNorm", "StepStats", "sharpness"]


def __dir__() -> list[str]:
    return __all__
