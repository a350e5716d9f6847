"""ε-constrained unlearning: minimise the damage to what is kept, subject to having forgotten enough."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from . import ops
from .binary import build_info
from .control import EpsilonGap, GradientNorm, StepStats
from .optim import EpsilonAdamW, EpsilonProjection, EpsilonSGD

if TYPE_CHECKING:
    from . import models
    from .pareto import ParetoFront
    from .phases import sweep
    from .unlearn import unlearn

__all__ = [
    "EpsilonAdamW", "EpsilonGap", "EpsilonProjection", "EpsilonSGD", "GradientNorm", "ParetoFront", "StepStats",
    "build_info", "models", "ops", "sweep", "unlearn",
]  # fmt: skip

# The image side needs extras that the core does not: its names are imported when they are first used.
_IMAGE_SIDE = {"ParetoFront": "pareto", "sweep": "phases", "unlearn": "unlearn", "models": None}


def __getattr__(name: str) -> Any:
    if name not in _IMAGE_SIDE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _IMAGE_SIDE[name]
    module = import_module(f".{home or name}", __name__)
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value
