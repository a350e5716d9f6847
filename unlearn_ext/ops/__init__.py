"""Kernels on lists of tensors: functional operators, and the two-phase step that the optimizers use."""

from .extension import build_info
from .functional import (
    GIVEN_PSI,
    adamw_step_,
    control_block,
    halfspace_project_,
    halfspace_stats,
    sgd_step_,
    wrap_step_,
)
from .layout import MAX_CONSTRAINTS, Control, Hyper, Kind, Operands, Report, Rule, StepControl, StepReport, Sums
from .two_phase import TwoPhase

__all__ = [
    "GIVEN_PSI",
    "MAX_CONSTRAINTS",
    "Control",
    "Hyper",
    "Kind",
    "Operands",
    "Report",
    "Rule",
    "StepControl",
    "StepReport",
    "Sums",
    "TwoPhase",
    "adamw_step_",
    "build_info",
    "control_block",
    "halfspace_project_",
    "halfspace_stats",
    "sgd_step_",
    "wrap_step_",
]


def __dir__() -> list[str]:
    return __all__
