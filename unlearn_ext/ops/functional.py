"""Functional steps, one call per step, registered as ``torch.ops.unlearn_ext.*``; none is differentiable."""

from collections.abc import Sequence
from math import inf, nan

import torch
from torch import Tensor

from .layout import Control, Hyper, Kind, Operands, Report, Rule, Sum
from .registration import check_devices, fake, fake_in_place, operator
from .two_phase import TwoPhase

__all__ = [
    "GIVEN_PSI",
    "UNCONSTRAINED",
    "adamw_step_",
    "control_block",
    "halfspace_project_",
    "halfspace_stats",
    "sgd_step_",
]


def control_block(
    coefficients: Sequence[float | Tensor], max_norm: float | None = None, lambda_max: float | None = None
) -> list[float | Tensor]:
    """Return the ten entries of ``control`` (``layout.Control``) from a control function's ``coefficients()``."""
    return [
        *coefficients,
        inf if max_norm is None else max_norm,
        inf if lambda_max is None else lambda_max,
        0.0,
    ]


#: The coefficients of a step without a constraint: λ = 0.
UNCONSTRAINED = (Kind.UNCONSTRAINED, 0.0, nan, 0.0, 1.0, 0.0, inf)
#: The coefficients of a step whose ψ the caller writes to ``control[Control.GIVEN_PSI]``.
GIVEN_PSI = (Kind.GIVEN, 0.0, nan, 0.0, 1.0, 0.0, inf)


def _check_lists(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> None:
    if not directions or len(directions) != len(constraint_grads):
        raise ValueError(
            f"projection: as many constraint gradients as directions are needed, and at least one; "
            f"got {len(directions)} and {len(constraint_grads)}"
        )


def _projection(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> TwoPhase:
    _check_lists(directions, constraint_grads)
    step = TwoPhase(directions[0].device)
    none = [None] * len(directions)
    step.hyper[:, Hyper.LR].fill_(1.0)  # fill_, not assignment: a CUDA graph cannot capture a copy from the host
    step.control[Control.KIND].fill_(Kind.GIVEN)
    step.control[Control.CAP : Control.GIVEN_PSI].fill_(inf)
    step.begin(Rule.PROJECT, Operands(none, directions, constraint_grads, none, none, none, [0] * len(directions)))
    return step


@operator()
def halfspace_stats(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> Tensor:
    """Compute ⟨g1, d⟩, ‖g1‖² and ‖d‖² over all tensors: float64 ``[3]`` on their device.

    Args:
        directions: d, at least one tensor.
        constraint_grads: g1, of the same shapes.
    """
    step = _projection(directions, constraint_grads)
    step.stats(solve=False)
    return step.sums[0, : Sum.RAW_CONSTRAINT].clone()


@fake("halfspace_stats")
def _(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> Tensor:
    _check_lists(directions, constraint_grads)
    check_devices(*directions, *constraint_grads)
    return directions[0].new_empty(3, dtype=torch.float64)


@operator(mutates=["directions"])
def halfspace_project_(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor], psi: Tensor) -> Tensor:
    """Project d in place: d ← argmin ‖g − d‖² s.t. ⟨g1, g⟩ ≥ ψ, over all tensors at once.

    Source: Feng et al., ICLR 2025, eq. 6 with any ψ.

    Args:
        directions: d, at least one tensor; overwritten with g. Unchanged if any value is not finite.
        constraint_grads: g1, of the same shapes.
        psi: ψ, 0-d.

    Returns:
        float64 ``[2]``: λ, and a flag, 1 if nothing was written because a value was not finite.
    """
    step = _projection(directions, constraint_grads)
    if psi is None or psi.dim() or not psi.is_floating_point():  # torch lets None pass for a tensor
        raise ValueError(f"projection: psi={psi!r} must be a real 0-d tensor")
    step.control[Control.GIVEN_PSI] = psi
    step.stats()
    step.apply_()
    return torch.stack((step.report[Report.LAMBDA], step.report[Report.SKIPPED]))


@fake("halfspace_project_")
def _(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor], psi: Tensor) -> Tensor:
    _check_lists(directions, constraint_grads)
    check_devices(*directions, *constraint_grads, *([psi] if psi.is_meta else []))
    return directions[0].new_empty(2, dtype=torch.float64)


@operator(mutates=["params", "momentum_buffers", "steps", "report"])
def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    constraint_grads: Sequence[Tensor | None],
    momentum_buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
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
        constraint_grads: g1, of the same shapes; ``None`` counts as zero.
        momentum_buffers: of the same shapes; empty for no momentum.
        steps: float32 0-d step counters, as many as momentum buffers.
        groups: index of the row of ``hyper`` for each tensor, ascending.
        hyper: float64 ``[groups, 8]``, columns as in ``layout.Hyper``.
        control: float64 ``[10]``, see :func:`control_block`.
        report: float64 ``[10]``; the input is f1 at ``layout.Report.CONSTRAINT``, the rest is output.
        fused: as in :class:`TwoPhase`.
    """
    if len(momentum_buffers) != len(steps):
        raise ValueError(f"step: {len(momentum_buffers)} momentum buffers need as many steps, not {len(steps)}")
    none = [None] * len(params)
    operands = Operands(params, grads, constraint_grads, momentum_buffers or none, none, steps or none, groups)
    _step(Rule.SGD, operands, hyper, control, report, fused)


@operator(mutates=["params", "exp_avgs", "exp_avg_sqs", "steps", "report"])
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    constraint_grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
    fused: bool | None = None,
) -> None:
    """Take one step of :class:`~unlearn_ext.EpsilonAdamW` in place, both phases; arguments as in :func:`sgd_step_`."""
    operands = Operands(params, grads, constraint_grads, exp_avgs, exp_avg_sqs, steps, groups)
    _step(Rule.ADAMW, operands, hyper, control, report, fused)


fake("sgd_step_")(fake_in_place)
fake("adamw_step_")(fake_in_place)


def _step(rule: Rule, operands: Operands, hyper: Tensor, control: Tensor, report: Tensor, fused: bool | None) -> None:
    if hyper is None or control is None or report is None:  # torch lets None pass for a tensor
        raise TypeError("step: hyper, control and report must be tensors")
    n_groups, groups = len(hyper), operands.groups
    if groups and not (groups[0] >= 0 and list(groups) == sorted(groups) and groups[-1] < n_groups):
        raise ValueError(f"step: groups must ascend from 0 or above and stay below the {n_groups} rows of hyper")
    step = TwoPhase(report.device, n_groups, fused).on(hyper, control, report)
    step.begin(rule, operands)
    step.stats()
    step.apply_()
