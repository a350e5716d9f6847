"""Every operation of the kernels in plain PyTorch: the reference in tests, and the fallback without a kernel.

The formulas are those of ``csrc/rules.h``. Half-precision tensors are computed in float32, float64 ones in float64;
sums are float64 where the device has it. No tensor is read on the host, so nothing here synchronises.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _aliasing
from .layout import WRITES, Control, Hyper, Kind, Operands, Report, Rule, Sum


@dataclass
class _Element:
    """The values of one row in the computing dtype.

    Attributes:
        grad: g2, negated under ``maximize``.
        constraint_grad: g1.
        direction: d.
        constraint: P⁻¹g1.
        metric: diag P; ``None`` for P = I.
        first: the new momentum buffer or first moment.
        second: the new second moment.
    """

    grad: Tensor
    constraint_grad: Tensor
    direction: Tensor
    constraint: Tensor
    metric: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None


def check(rule: Rule, operands: Operands) -> None:
    """Reject operands that torch would silently broadcast, truncate or strip of an imaginary part.

    Raises:
        ValueError: a gradient's or state's shape is not its parameter's.
        RuntimeError: a tensor is on another device, not dense or not of a real floating-point dtype, or a written
            tensor is an inference tensor or shares memory, see :func:`_aliasing.check`.
    """
    owners = _owners(rule, operands)
    for tensors in operands.lists()[:-1]:
        for row, (owner, tensor) in enumerate(zip(owners, tensors, strict=True)):
            if tensor is None:
                continue
            if tensor.device != owners[0].device:
                raise RuntimeError(
                    f"step: tensors are on {owners[0].device} and {tensor.device}; move them to one device"
                )
            if tensor.layout is not torch.strided:
                raise RuntimeError(f"step: tensor {row}, its gradient or moment is {tensor.layout}; it must be dense")
            if tensor.shape != owner.shape:
                raise ValueError(
                    f"step: tensor {row} has shape {tuple(owner.shape)} but a gradient or moment of shape "
                    f"{tuple(tensor.shape)}; zero the gradients and run both backward passes again"
                )
            if not tensor.is_floating_point():
                raise RuntimeError(
                    f"step: tensor {row} is {tensor.dtype}; only real floating-point tensors can be stepped"
                )
    _aliasing.check(operands.lists(), WRITES[rule])


def _owners(rule: Rule, operands: Operands) -> Sequence[Tensor]:
    """Return the tensors that the step changes: the directions of a projection, else the parameters."""
    return operands.grads if rule is Rule.PROJECT else operands.params  # type: ignore[return-value]  # none is None


def stats(rule: Rule, operands: Operands, hyper: Tensor, sums: Tensor) -> None:
    """Write the sums of every group to ``sums``: float64 ``[groups, 5]``, columns as in ``layout.Sum``."""
    sums.zero_()
    for row, group in enumerate(operands.groups):
        e = _element(rule, operands, row, hyper[group])
        weighted = e.direction if e.metric is None else e.direction * e.metric
        pairs = (
            (e.constraint_grad, e.direction),
            (e.constraint_grad, e.constraint),
            (e.direction, weighted),
            (e.constraint_grad, e.constraint_grad),
            (e.grad, e.grad),
        )
        for column, (a, b) in zip(Sum, pairs, strict=True):
            sums[group, column] += (a.to(sums.dtype) * b.to(sums.dtype)).sum()


def solve(sums: Tensor, hyper: Tensor, control: Tensor, report: Tensor) -> None:
    """Solve for λ over all groups; write ψ, λ, the clipping factor and the flags to ``report``.

    λ = max((Ψ − Σμ⟨g1,d⟩) / Σμ⟨g1,P⁻¹g1⟩, 0), with the sums over the groups and μ each group's learning rate.
    """
    zero = torch.zeros_like(report[0])
    lr = hyper[:, Hyper.LR]
    dot, sq_constraint, sq_direction = (
        sums[:, Sum.DOT].sum(),
        sums[:, Sum.SQ_CONSTRAINT].sum(),
        sums[:, Sum.SQ_DIRECTION].sum(),
    )
    lr_dot, lr_sq = (lr * sums[:, Sum.DOT]).sum(), (lr * sums[:, Sum.SQ_CONSTRAINT]).sum()
    mean_lr = torch.where(sq_constraint > 0, lr_sq / sq_constraint, lr.mean())
    constrained = control[Control.KIND] != Kind.UNCONSTRAINED

    integral = _integral(control, report)
    decrease = torch.where(
        constrained, _required_decrease(control, report, integral, mean_lr, sq_constraint, lr_sq), zero
    )
    lam = torch.where(lr_sq > 0, (decrease - lr_dot) / lr_sq, zero)
    lam = torch.where(lam < 0, zero, lam)  # a NaN stays a NaN
    lam = torch.where(lam > control[Control.LAMBDA_MAX], control[Control.LAMBDA_MAX], lam)
    lam = torch.where(constrained, lam, zero)

    norm = (sq_direction + 2 * lam * dot + lam * lam * sq_constraint).clamp_min(0).sqrt()
    scale = control[Control.MAX_NORM] / (norm + 1e-6)
    good = torch.isfinite(sums).all() & torch.isfinite(decrease) & (lam <= torch.finfo(torch.float32).max)
    good &= torch.isfinite(report[Report.CONSTRAINT]) | ~constrained

    report[Report.PSI] = torch.where(mean_lr > 0, decrease / mean_lr, zero)
    report[Report.LAMBDA] = lam
    report[Report.DOT] = torch.where(mean_lr > 0, lr_dot / mean_lr, dot)
    report[Report.SQ_CONSTRAINT] = sq_constraint
    report[Report.SQ_DIRECTION] = sq_direction
    report[Report.SCALE] = torch.where(scale < 1, scale, zero + 1)
    report[Report.SKIPPED] = (~good).to(report.dtype)
    report[Report.SKIPPED_STEPS] += (~good).to(report.dtype)
    report[Report.INTEGRAL] = torch.where(good, integral, report[Report.INTEGRAL])


def apply_(rule: Rule, operands: Operands, hyper: Tensor, report: Tensor) -> None:
    """Step in place: θ ← θ − μ·scale·(d + λP⁻¹g1), and update the state.

    If ``report[SKIPPED]`` is set, every value stays unchanged.
    """
    keep = report[Report.SKIPPED] != 0
    lam, scale = report[Report.LAMBDA], report[Report.SCALE]
    owners = _owners(rule, operands)
    for row, group in enumerate(operands.groups):
        e = _element(rule, operands, row, hyper[group])
        g = (e.direction + e.constraint * lam.to(e.direction.dtype)) * scale.to(e.direction.dtype)
        if rule is Rule.PROJECT:
            _write(owners[row], g, keep)
            continue
        param = owners[row]
        _write(param, param.to(g.dtype) - g * hyper[group, Hyper.LR].to(g.dtype), keep)
        _write(operands.firsts[row], e.first, keep)
        _write(operands.seconds[row], e.second, keep)
        if (step := operands.steps[row]) is not None:
            step += torch.where(keep, 0.0, 1.0).to(step)


def _write(target: Tensor | None, value: Tensor | None, keep: Tensor) -> None:
    """Write ``value`` to ``target``, unless ``keep`` is set or there is no target."""
    if target is not None:
        target.copy_(torch.where(keep, target, value.to(target.dtype)))  # type: ignore[union-attr]


def _element(rule: Rule, operands: Operands, row: int, hyper: Tensor) -> _Element:
    like = _owners(rule, operands)[row]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    grad, g1, first, second = (
        torch.zeros_like(like, dtype=dtype) if tensor is None else tensor.to(dtype)
        for tensor in (operands.grads[row], operands.constraint_grads[row], operands.firsts[row], operands.seconds[row])
    )
    signed = torch.where(hyper[Hyper.MAXIMIZE] != 0, -grad, grad)
    state = _State(like.to(dtype), first, second, operands.steps[row], operands.firsts[row] is not None)
    return _ELEMENTS[rule](signed, g1, state, hyper)


@dataclass
class _State:
    """The parameter and the optimizer state of one row in the computing dtype; moments that it has not are zero."""

    param: Tensor
    first: Tensor
    second: Tensor
    step: Tensor | None
    has_first: bool


def _project(grad: Tensor, g1: Tensor, state: _State, hyper: Tensor) -> _Element:
    return _Element(grad, g1, grad, g1)


def _sgd(grad: Tensor, g1: Tensor, state: _State, hyper: Tensor) -> _Element:
    h = hyper.to(grad.dtype)
    decayed = _decayed(grad, state.param, h[Hyper.WEIGHT_DECAY])
    if not state.has_first:
        return _Element(grad, g1, decayed, g1)
    first = state.first * h[Hyper.BETA1] + decayed * (1 - h[Hyper.BETA2])
    if state.step is not None:  # a momentum buffer loaded from torch's SGD has no counter
        first = torch.where(state.step != 0, first, decayed)  # as in torch, the first gradient is not dampened
    direction = torch.where(h[Hyper.NESTEROV] != 0, decayed + first * h[Hyper.BETA1], first)
    return _Element(grad, g1, direction, g1, first=first)


def _adamw(grad: Tensor, g1: Tensor, state: _State, hyper: Tensor) -> _Element:
    dtype = grad.dtype
    beta1, beta2, weight = hyper[Hyper.BETA1], hyper[Hyper.BETA2], hyper[Hyper.CONSTRAINT_WEIGHT].to(dtype)
    t = state.step.to(hyper.dtype) + 1  # type: ignore[union-attr]  # AdamW has them
    first = state.first + (grad - state.first) * (1 - beta1).to(dtype)
    second = state.second * beta2.to(dtype) + (grad * grad + g1 * g1 * weight) * (1 - beta2).to(dtype)
    metric = second.sqrt() * (1 - beta2**t).rsqrt().to(dtype) + hyper[Hyper.EPS].to(dtype)
    adaptive = first * (1 / (1 - beta1**t)).to(dtype) / metric
    direction = _decayed(adaptive, state.param, hyper[Hyper.WEIGHT_DECAY].to(dtype))
    return _Element(grad, g1, direction, g1 / metric, metric, first, second)


# How each rule computes the values of a row from g2 (negated under maximize), g1, its state and its hyperparameters.
_ELEMENTS = {Rule.PROJECT: _project, Rule.SGD: _sgd, Rule.ADAMW: _adamw}


def _decayed(direction: Tensor, param: Tensor, weight_decay: Tensor) -> Tensor:
    """Add weight decay to the direction; without decay return it unchanged, since 0·∞ would be NaN."""
    return torch.where(weight_decay == 0, direction, direction + param * weight_decay)


def _integral(control: Tensor, report: Tensor) -> Tensor:
    integral, gain = report[Report.INTEGRAL], control[Control.INTEGRAL_GAIN]
    gap, reach = report[Report.CONSTRAINT] - control[Control.EPSILON], control[Control.EPSILON].abs()
    bound = reach / torch.where(gain > 0, gain, torch.ones_like(gain))
    integrates = (control[Control.KIND] == Kind.EPSILON_GAP) & (gain > 0) & ~(gap.abs() > 0.5 * reach)
    return torch.where(integrates, torch.minimum(torch.maximum(integral + gap, -bound), bound), integral)


def _required_decrease(
    control: Tensor, report: Tensor, integral: Tensor, mean_lr: Tensor, sq_constraint: Tensor, lr_sq: Tensor
) -> Tensor:
    """Return Ψ = μψ, the first-order decrease of f1 that the control function requires of this step."""
    kind, alpha, delta = control[Control.KIND], control[Control.ALPHA], control[Control.DELTA]
    gap = report[Report.CONSTRAINT] - control[Control.EPSILON]
    shape = (
        torch.where(gap < 0, -1.0, 1.0).to(gap.dtype) * gap.abs() ** delta + control[Control.INTEGRAL_GAIN] * integral
    )
    by_gap = torch.where(alpha.isnan(), control[Control.RATE], mean_lr * alpha) * shape
    by_norm = mean_lr * alpha * sq_constraint ** (0.5 * delta)
    given = mean_lr * control[Control.GIVEN_PSI]
    decrease = torch.where(kind == Kind.EPSILON_GAP, by_gap, torch.where(kind == Kind.GRADIENT_NORM, by_norm, given))
    cap = control[Control.CAP] * lr_sq
    return torch.where(decrease > cap, cap, decrease)
