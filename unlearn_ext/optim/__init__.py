"""Optimizers that minimise an objective under constraints; each step solves a QP in the optimizer's own metric."""

from .adamw import EpsilonAdamW
from .control import EpsilonGap, GradientNorm, StepStats
from .neighbour import sharpness
from .sgd import EpsilonSGD
from .wrapper import EpsilonWrapper

__all__ = ["EpsilonAdamW", "EpsilonGap", "EpsilonSGD", "EpsilonWrapper", "GradientNorm", "StepStats", "sharpness"]


def __dir__() -> list[str]:
    return __all__
