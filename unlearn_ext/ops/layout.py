"""Names of the values that the two phases exchange; mirrors ``csrc/tensors.h``, ``rules.h`` and ``control.h``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from itertools import chain

from torch import Tensor

__all__ = [
    "KEPT",
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
    "slots_for",
    "written",
]

#: The most constraints of one step that the kernels have; more are computed by the reference.
MAX_CONSTRAINTS = 8


class Rule(IntEnum):
    """The kind of step, which determines the direction d and the metric P of the QP."""

    PROJECT = 0
    SGD = 1
    ADAMW = 2
    WRAP = 3


@dataclass(frozen=True)
class Sums:
    """Columns of ``sums``, float64 ``[groups, count]``, for a number of constraints.

    ‖d‖²_P and ‖g2‖², then for each constraint ⟨a_i,d⟩, ⟨∇c_i,P⁻¹∇c_i⟩ and ⟨∇c_i,P⁻¹a₋_i⟩ with the average of the step
    before, and ⟨a_i,P⁻¹a_j⟩ for i ≤ j.

    Attributes:
        slots: number of constraints that the step is computed for, see :func:`slots_for`.
    """

    slots: int

    SQ_DIRECTION = 0
    SQ_GRAD = 1  # ⟨g2,P⁻¹g2⟩

    def dot(self, i: int) -> int:
        """Return the column of ⟨a_i,d⟩."""
        return 2 + i

    def power(self, i: int) -> int:
        """Return the column of ⟨∇c_i,P⁻¹∇c_i⟩."""
        return 2 + self.slots + i

    def aligned(self, i: int) -> int:
        """Return the column of ⟨∇c_i,P⁻¹a₋_i⟩."""
        return 2 + 2 * self.slots + i

    def gram(self, i: int, j: int) -> int:
        """Return the column of ⟨a_i,P⁻¹a_j⟩."""
        i, j = min(i, j), max(i, j)
        return 2 + 3 * self.slots + i * self.slots - i * (i - 1) // 2 + (j - i)

    @property
    def count(self) -> int:
        """Number of columns."""
        return 2 + 3 * self.slots + self.slots * (self.slots + 1) // 2


def slots_for(constraints: int) -> int:
    """Return how many constraints a step is computed for: 1, 2, 4 or 8, as the kernels; past 8 the number itself."""
    return constraints if constraints > MAX_CONSTRAINTS else 1 << max(constraints - 1, 0).bit_length()


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


class StepControl(IntEnum):
    """Entries of row 0 of ``control``."""

    MAX_NORM = 0


class Control(IntEnum):
    """Columns of ``control``, float64 ``[1 + constraints, 11]``, in the row of a constraint, 1 or later.

    If ALPHA is NaN, RATE is used instead. CAP is NaN if the first demand determines it. INTEGRATES: whether
    noise is compensated. DECAY is that of the moving
    average of ∇c: 0 for none, NaN if the measured noise determines it.
    """

    KIND = 0
    EPSILON = 1
    ALPHA = 2
    RATE = 3
    DELTA = 4
    CAP = 5
    INTEGRATES = 6
    GIVEN_PSI = 7
    EQUALITY = 8
    LAMBDA_MAX = 9
    DECAY = 10


class Kind(IntEnum):
    """Values of ``control[row, Control.KIND]``."""

    GIVEN = 0
    GRADIENT_NORM = 1
    EPSILON_GAP = 2


class StepReport(IntEnum):
    """Entries of row 0 of ``report``. SKIPPED_STEPS carries over from step to step."""

    SQ_DIRECTION = 0
    SCALE = 1
    SKIPPED = 2
    SKIPPED_STEPS = 3


class Report(IntEnum):
    """Columns of ``report``, float64 ``[1 + constraints, 27]``, in the row of a constraint, 1 or later.

    CONSTRAINT is c, which is input; the rest is output. The columns from COUNT on carry over from step to step: they
    are what the control remembers, explained in ``csrc/control.h``.
    """

    CONSTRAINT = 0
    PSI = 1
    LAMBDA = 2
    MULTIPLIER = 3
    DOT = 4
    SQ_CONSTRAINT = 5
    SHORTFALL = 6
    FRESH = 7
    COUNT = 8
    SIGNAL = 9
    ALIGNED = 10
    POWER = 11
    MODEL = 12
    EPSILON_BEFORE = 13
    REACH = 14
    FIRST_REACH = 15
    ROOM = 16
    PULL = 17
    MEAN_PULL = 18
    PULL_NOISE = 19
    INTEGRAL = 20
    SATURATED = 21
    GAP = 22
    GAP_NOISE = 23
    GAP_STEPS = 24
    UNSETTLED = 25
    CARRIED = 26


#: The first column of ``report`` that carries over from step to step.
KEPT = Report.COUNT

#: Indices in :meth:`Operands.lists` of the params, grads and moments that each rule writes; averages and step counters
#: are always written.
_WRITES = {Rule.PROJECT: (1,), Rule.SGD: (0, 2), Rule.ADAMW: (0, 2, 3), Rule.WRAP: (0, 3)}


@dataclass
class Operands:
    """The tensors of one step, as lists with one entry per row. Rows are sorted by group.

    Attributes:
        params: θ; ``None`` for ``Rule.PROJECT``.
        grads: g2, ``None`` counts as zero; for ``Rule.PROJECT`` not ``None``, since g is written there.
        firsts: momentum buffer or first moment; θ before the step for ``Rule.WRAP``; ``None`` if the rule has none.
        seconds: second moment; ``None`` if the rule has none.
        steps: float32 0-d counters of the steps taken; ``None`` if the rule has none.
        groups: index of the parameter group.
        constraint_grads: for each constraint a list of ∇c, where ``None`` counts as zero.
        averages: for each constraint a list of the moving averages of ∇c; ``None`` for no average.

    Raises:
        TypeError: an attribute is not a list; the kernels read nothing else.
    """

    params: Sequence[Tensor | None]
    grads: Sequence[Tensor | None]
    firsts: Sequence[Tensor | None]
    seconds: Sequence[Tensor | None]
    steps: Sequence[Tensor | None]
    groups: Sequence[int]
    constraint_grads: Sequence[Sequence[Tensor | None]] = field(default_factory=list)
    averages: Sequence[Sequence[Tensor | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.averages:
            none: list[Tensor | None] = [None] * len(self)
            self.averages = [none for _ in self.constraint_grads]
        for name, values in vars(self).items():
            if not isinstance(values, list):
                raise TypeError(f"Operands: {name} must be a list, not a {type(values).__name__}")
        for column in chain(self.constraint_grads, self.averages):
            if not isinstance(column, list):
                raise TypeError(f"Operands: a constraint's tensors must be a list, not a {type(column).__name__}")
        if len(self.averages) != len(self.constraint_grads):
            raise ValueError(
                f"Operands: {len(self.constraint_grads)} constraints need as many lists of averages, "
                f"not {len(self.averages)}"
            )

    def __len__(self) -> int:
        return len(self.grads)

    @property
    def constraints(self) -> int:
        """Number of constraints."""
        return len(self.constraint_grads)

    def lists(self) -> tuple[Sequence[Tensor | None], ...]:
        """Return params, grads, firsts, seconds, then ∇c and averages of each constraint, then steps."""
        of_constraints = chain.from_iterable(zip(self.constraint_grads, self.averages, strict=True))
        return self.params, self.grads, self.firsts, self.seconds, *of_constraints, self.steps


@cache
def written(rule: Rule, constraints: int) -> tuple[int, ...]:
    """Return the indices in :meth:`Operands.lists` that a step writes; the last is that of the step counters."""
    steps = 4 + 2 * constraints
    return *_WRITES[rule], *range(5, steps, 2), steps
