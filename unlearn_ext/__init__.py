"""ε-constrained unlearning: minimise the damage to what is kept, subject to having forgotten enough."""

__version__ = "0.1.0"

from . import models, ops
from .binary import build_info
from .control import EpsilonGap, GradientNorm, StepStats
from .optim import EpsilonAdamW, EpsilonProjection, EpsilonSGD
from .pareto import ParetoFront
from .phases import sweep
from .unlearn import unlearn  # the function: from here on it, not its module, is what the name means

__all__ = [
    "EpsilonAdamW",
    "EpsilonGap",
    "EpsilonProjection",
    "EpsilonSGD",
    "GradientNorm",
    "ParetoFront",
    "StepStats",
    "build_info",
    "models",
    "ops",
    "sweep",
    "unlearn",
]
