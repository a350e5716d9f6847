"""ε-constrained unlearning: minimise the damage to what is kept, subject to having forgotten enough."""

from . import models, ops
from ._version import __version__
from .ops import build_info
from .optim import EpsilonAdamW, EpsilonProjection, EpsilonSGD
from .optim.control import EpsilonGap, GradientNorm, StepStats
from .unlearning.pareto import ParetoFront
from .unlearning.phases import sweep
from .unlearning.single import unlearn  # the function: from here on it, not its module, is what the name means

__all__ = [
    "EpsilonAdamW",
    "EpsilonGap",
    "EpsilonProjection",
    "EpsilonSGD",
    "GradientNorm",
    "ParetoFront",
    "StepStats",
    "__version__",
    "build_info",
    "models",
    "ops",
    "sweep",
    "unlearn",
]
