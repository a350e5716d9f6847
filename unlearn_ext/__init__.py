"""ε-constrained unlearning: minimise the damage to what is kept, subject to having forgotten enough.

The optimizers and operators need torch and numpy alone. Everything that works on images is imported when it is first
used, since it needs more packages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import ops, optim
from ._version import __version__
from .errors import UserError
from .ops import build_info
from .optim import EpsilonAdamW, EpsilonGap, EpsilonSGD, EpsilonWrapper, GradientNorm, StepStats, sharpness

if TYPE_CHECKING:
    from . import audit, baselines, data, metrics, models, pretrain, report, reproduction, tasks
    from .unlearning.earlier import read_earlier
    from .unlearning.history import History
    from .unlearning.pareto import ParetoFront
    from .unlearning.phases import sweep
    from .unlearning.settings import Settings
    from .unlearning.single import unlearn

__all__ = [
    "EpsilonAdamW",
    "EpsilonGap",
    "EpsilonSGD",
    "EpsilonWrapper",
    "GradientNorm",
    "History",
    "ParetoFront",
    "Settings",
    "StepStats",
    "UserError",
    "__version__",
    "audit",
    "baselines",
    "build_info",
    "data",
    "metrics",
    "models",
    "ops",
    "optim",
    "pretrain",
    "read_earlier",
    "report",
    "reproduction",
    "sharpness",
    "sweep",
    "tasks",
    "unlearn",
]

_MODULES = ("audit", "baselines", "data", "metrics", "models", "pretrain", "report", "reproduction", "tasks")
_MODULE_OF = {
    "History": "unlearning.history",
    "ParetoFront": "unlearning.pareto",
    "Settings": "unlearning.settings",
    "read_earlier": "unlearning.earlier",
    "sweep": "unlearning.phases",
    "unlearn": "unlearning.single",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
