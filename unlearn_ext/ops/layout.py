"""Names of the values that the two phases exchange; mirrors ``csrc/rules.h`` and ``csrc/tensors.h``."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

__all__ = ["WRITES", "Control", "Hyper", "Kind", "Operands", "Report", "Rule", "Sum"]


class Rule(IntEnum):
    """The kind of step, which determines the direction d and the metric P of the QP."""

    PROJECT = 0
    SGD = 1
    ADAMW = 2


class Sum(IntEnum):
    """Columns of ``sums``, float64 ``[groups, 5]``: ⟨g1,d⟩, ⟨g1,P⁻¹g1⟩, ‖d‖²_P, ‖g1‖², ‖g2‖²."""

    DOT = 0
    SQ_CONSTRAINT = 1
    SQ_DIRECTION = 2
    RAW_CONSTRAINT = 3
    RAW_GRAD = 4


class Hyper(IntEnum):
    """Columns of ``hyper``, float64 ``[groups, 8]``. SGD stores its momentum in BETA1 and its dampening in BETA2."""

    LR = 0
    BETA1 = 1
    BETA2 = 2
    EPS = 3
    WEIGHT_DECAY = 4
    NESTEROV = 5
    MAXIMIZE = 6
    CONSTRAINT_WEIGHT = 7


class Control(IntEnum):
    """Entries of ``control``, float64 ``[10]``. If ALPHA is NaN, RATE is used instead."""

    KIND = 0
    EPSILON = 1
    ALPHA = 2
    RATE = 3
    DELTA = 4
    INTEGRAL_GAIN = 5
    CAP = 6
    MAX_NORM = 7
    LAMBDA_MAX = 8
    GIVEN_PSI = 9


class Kind(IntEnum):
    """Values of ``control[Control.KIND]``."""

    UNCONSTRAINED = 0
    GIVEN = 1
    GRADIENT_NORM = 2
    EPSILON_GAP = 3


class Report(IntEnum):
    """Entries of ``report``, float64 ``[10]``: f1 (CONSTRAINT) is input, the rest is output.

    SKIPPED_STEPS and INTEGRAL carry over from step to step.
    """

    CONSTRAINT = 0
    PSI = 1
    LAMBDA = 2
    DOT = 3
    SQ_CONSTRAINT = 4
    SQ_DIRECTION = 5
    SCALE = 6
    SKIPPED = 7
    SKIPPED_STEPS = 8
    INTEGRAL = 9


#: Indices of the lists of :class:`Operands` that each rule writes; the last is the list of step counters.
WRITES = {Rule.PROJECT: (1, 5), Rule.SGD: (0, 3, 5), Rule.ADAMW: (0, 3, 4, 5)}


@dataclass
class Operands:
    """The tensors of one step, as lists with one entry per row. Rows are sorted by group.

    Attributes:
        params: θ; ``None`` for ``Rule.PROJECT``.
        grads: g2, ``None`` counts as zero; for ``Rule.PROJECT`` not ``None``, since g is written there.
        constraint_grads: g1, ``None`` counts as zero.
        firsts: momentum buffer or first moment; ``None`` if the rule has none.
        seconds: second moment; ``None`` if the rule has none.
        steps: float32 0-d counters of the steps taken; ``None`` if the rule has none.
        groups: index of the parameter group.

    Raises:
        TypeError: an attribute is not a list; the kernels read nothing else.
    """

    params: Sequence[Tensor | None]
    grads: Sequence[Tensor | None]
    constraint_grads: Sequence[Tensor | None]
    firsts: Sequence[Tensor | None]
    seconds: Sequence[Tensor | None]
    steps: Sequence[Tensor | None]
    groups: Sequence[int]

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if not isinstance(values, list):
                raise TypeError(f"Operands: {name} must be a list, not a {type(values).__name__}")

    def __len__(self) -> int:
        return len(self.grads)

    def lists(self) -> tuple[Sequence[Tensor | None], ...]:
        """Return the lists of tensors, in the order of the attributes."""
        return self.params, self.grads, self.constraint_grads, self.firsts, self.seconds, self.steps
