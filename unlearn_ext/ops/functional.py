"""Functional steps, one call per step, registered as ``torch.ops.unlearn_ext.*``; none is differentiable."""

from collections.abc import Sequence
from itertools import chain
from math import inf, nan

import torch
from torch import Tensor

from .layout import Control, Hyper, Kind, Operands, Report, Rule, StepControl, StepReport, Sums, slots_for
from .registration import check_devices, fake, fake_in_place, operator
from .two_phase import TwoPhase

__all__ = [
    "GIVEN_PSI",
    "adamw_step_",
    "control_block",
    "halfspace_project_",
    "halfspace_stats",
    "sgd_step_",
    "wrap_step_",
]

Lists = Sequence[Tensor | None]


def control_block(
    constraints: Sequence[Sequence[float | Tensor]], max_norm: float | None = None
) -> list[float | Tensor]:
    """Return the entries of ``control``, row by row: the step's own, then one row for each constraint.

    Args:
        constraints: the entries of ``layout.Control`` of each constraint.
        max_norm: upper limit of the norm of g; ``None`` for no limit.
    """
    return [inf if max_norm is None else max_norm, *_REST, *chain.from_iterable(constraints)]


_REST = (0.0,) * (len(Control) - 1)

#: The coefficients, KIND … INTEGRATES, of a constraint whose ψ the caller writes to ``Control.GIVEN_PSI``.
GIVEN_PSI = (Kind.GIVEN, 0.0, nan, 0.0, 1.0, inf, False)


def _columns(tensors: Lists, rows: int, what: str) -> list[Lists]:
    """Split the lists of several constraints, one after the other, into a list for each."""
    if not rows or len(tensors) % rows:
        raise ValueError(f"step: {len(tensors)} {what} cannot be divided into lists of {rows}")
    return [list(tensors[begin : begin + rows]) for begin in range(0, len(tensors), rows)]


def _check_lists(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> int:
    """Return the number of constraints; raise ``ValueError`` if the lists do not fit."""
    n = len(constraint_grads) // len(directions) if directions else 0
    if not n or len(constraint_grads) != n * len(directions):
        raise ValueError(
            "projection: at least one direction is needed, and for each constraint as many gradients as directions; "
            f"got {len(directions)} and {len(constraint_grads)}"
        )
    return n


def _projection(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> TwoPhase:
    n = _check_lists(directions, constraint_grads)
    step = TwoPhase(directions[0].device, constraints=n)
    none = [None] * len(directions)
    step.hyper[:, Hyper.LR].fill_(1.0)  # fill_, not assignment: a CUDA graph cannot capture a copy from the host
    step.control[0, StepControl.MAX_NORM].fill_(inf)
    for column, value in ((Control.KIND, Kind.GIVEN), (Control.CAP, inf), (Control.LAMBDA_MAX, inf)):
        step.control[1:, column].fill_(value)
    operands = Operands(
        none, directions, none, none, none, [0] * len(directions),
        _columns(constraint_grads, len(directions), "constraint gradients"),
    )  # fmt: skip
    step.begin(Rule.PROJECT, operands)
    return step


@operator()
def halfspace_stats(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> Tensor:
    """Compute ‖d‖², ⟨a_i, d⟩ for each of K constraints, and ⟨a_i, a_j⟩ for i ≤ j, over all tensors.

    Args:
        directions: d, at least one tensor.
        constraint_grads: ∇c, of the same shapes; with K constraints, K such lists one after the other.

    Returns:
        float64 ``[1 + K + K(K + 1)/2]`` on their device.
    """
    step = _projection(directions, constraint_grads)
    step.stats(solve=False)
    n = len(step.control) - 1
    columns, sums = Sums(slots_for(n)), step.sums[0]
    order = [columns.SQ_DIRECTION, *(columns.dot(i) for i in range(n))]
    return sums[[*order, *(columns.gram(i, j) for i in range(n) for j in range(i, n))]].clone()


@fake("halfspace_stats")
def _(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> Tensor:
    n = _check_lists(directions, constraint_grads)
    check_devices(*directions, *constraint_grads)
    return directions[0].new_empty(1 + n + n * (n + 1) // 2, dtype=torch.float64)


@operator(mutates=["directions"])
def halfspace_project_(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor], psi: Tensor) -> Tensor:
    """Project d in place: d ← argmin ‖g − d‖² s.t. ⟨a_i, g⟩ ≥ ψ_i for every i, over all tensors at once.

    Source: Feng et al., ICLR 2025, eq. 6 with any ψ.

    Args:
        directions: d, at least one tensor; overwritten with g. Unchanged if any value is not finite.
        constraint_grads: ∇c, of the same shapes; with K constraints, K such lists one after the other.
        psi: ψ, 0-d; or ``[K]``.

    Returns:
        float64 ``[K + 1]``: λ, and a flag, 1 if nothing was written because a value was not finite.
    """
    step = _projection(directions, constraint_grads)
    n = len(step.control) - 1
    real = isinstance(psi, Tensor) and psi.is_floating_point()  # torch lets None pass for a tensor
    if not real or psi.shape not in ((n,), () if n == 1 else (n,)):
        raise ValueError(f"projection: psi={psi!r} must be a real tensor of shape ({n},), or 0-d for one constraint")
    step.control[1:, Control.GIVEN_PSI] = psi
    step.stats()
    step.apply_()
    return torch.cat((step.report[1:, Report.LAMBDA], step.report[:1, StepReport.SKIPPED]))


@fake("halfspace_project_")
def _(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor], psi: Tensor) -> Tensor:
    n = _check_lists(directions, constraint_grads)
    check_devices(*directions, *constraint_grads, *([psi] if psi.is_meta else []))
    return directions[0].new_empty(n + 1, dtype=torch.float64)


@operator(mutates=["params", "momentum_buffers", "steps", "averages", "report"])
def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    constraint_grads: Sequence[Tensor | None],
    momentum_buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    averages: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
    fused: bool | None = None,
) -> None:
    """Take one step of :class:`~unlearn_ext.EpsilonSGD` in place, both phases.

    Args:
        params: θ.
        grads: g2, of the same shapes; ``None`` counts as zero.
        constraint_grads: ∇c, of the same shapes; ``None`` counts as zero. With K constraints, K such lists one after
            the other; empty for a step without a constraint.
        momentum_buffers: of the same shapes; empty for no momentum.
        steps: float32 0-d step counters, as many as momentum buffers.
        averages: moving averages of ∇c, as many as ``constraint_grads``, or empty.
        groups: index of the row of ``hyper`` for each tensor, ascending.
        hyper: float64 ``[groups, 8]``, columns as in ``layout.Hyper``.
        control: float64 ``[1 + K, 11]``, see :func:`control_block`.
        report: float64 ``[1 + K, 27]``; the input is c at ``layout.Report.CONSTRAINT``, the rest is output.
        fused: as in :class:`TwoPhase`.
    """
    if len(momentum_buffers) != len(steps):
        raise ValueError(f"step: {len(momentum_buffers)} momentum buffers need as many steps, not {len(steps)}")
    none = [None] * len(params)
    states = momentum_buffers or none, none, steps or none
    _step(Rule.SGD, params, grads, states, constraint_grads, averages, groups, hyper, control, report, fused)


@operator(mutates=["params", "exp_avgs", "exp_avg_sqs", "steps", "averages", "report"])
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    constraint_grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    averages: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
    fused: bool | None = None,
) -> None:
    """Take one step of :class:`~unlearn_ext.EpsilonAdamW` in place, both phases; arguments as in :func:`sgd_step_`."""
    states = exp_avgs, exp_avg_sqs, steps
    _step(Rule.ADAMW, params, grads, states, constraint_grads, averages, groups, hyper, control, report, fused)


@operator(mutates=["params", "exp_avg_sqs", "steps", "averages", "report"])
def wrap_step_(
    params: Sequence[Tensor],
    params_before: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    constraint_grads: Sequence[Tensor | None],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    averages: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
    fused: bool | None = None,
) -> None:
    """Correct in place the step from ``params_before`` to ``params`` that another optimizer took, both phases.

    The other arguments are as in :func:`sgd_step_`, and the correction is that of :class:`~unlearn_ext.EpsilonWrapper`.
    A step whose values are not finite is undone.
    """
    states = params_before, exp_avg_sqs, steps
    _step(Rule.WRAP, params, grads, states, constraint_grads, averages, groups, hyper, control, report, fused)


fake("sgd_step_")(fake_in_place)
fake("adamw_step_")(fake_in_place)
fake("wrap_step_")(fake_in_place)


def _step(
    rule: Rule,
    params: Sequence[Tensor],
    grads: Lists,
    states: tuple[Lists, Lists, Lists],
    constraint_grads: Lists,
    averages: Lists,
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
    fused: bool | None,
) -> None:
    if hyper is None or control is None or report is None:  # torch lets None pass for a tensor
        raise TypeError("step: hyper, control and report must be tensors")
    n_groups, n = len(hyper), len(params)
    if groups and not (groups[0] >= 0 and list(groups) == sorted(groups) and groups[-1] < n_groups):
        raise ValueError(f"step: groups must ascend from 0 or above and stay below the {n_groups} rows of hyper")
    by_constraint = _columns(constraint_grads, n, "constraint gradients") if constraint_grads else []
    averaged = _columns(averages, n, "averages") if averages else []
    if not 1 + len(by_constraint) <= len(control) == len(report):
        raise ValueError(
            f"step: control and report have {len(control)} and {len(report)} rows; {len(by_constraint)} constraints "
            f"need {1 + len(by_constraint)}"
        )
    step = TwoPhase(report.device, n_groups, len(control) - 1, fused).on(hyper, control, report)
    step.begin(rule, Operands(params, grads, *states, groups, by_constraint, averaged))
    step.stats()
    step.apply_()
