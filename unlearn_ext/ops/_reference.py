"""Every operation of the kernels in plain PyTorch: the reference in tests, and the fallback without a kernel.

The formulas are those of ``csrc/rules.h`` and ``csrc/control.h``. Half-precision tensors are computed in float32,
float64 ones in float64; sums are float64 where the device has it. With one constraint no tensor is read on the host, so
nothing synchronises; with several, the QP is solved on the host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _aliasing
from ._qp import solve_dual
from .layout import (
    KEPT,
    Control,
    Hyper,
    Kind,
    Operands,
    Report,
    Rule,
    StepControl,
    StepReport,
    Sums,
    slots_for,
    written,
)


@dataclass
class _Row:
    """The tensors of one row in the computing dtype; gradients and moments that it has not are zero.

    Attributes:
        param: θ; for a projection the direction.
        grad: g2.
        first: momentum buffer or first moment; θ before the step for ``Rule.WRAP``.
        second: second moment.
        step: number of steps taken; ``None`` if there is no counter.
        has_first: whether there is a first moment.
        held: ∇c of each constraint.
        a: what the step uses of each ∇c: itself, or its corrected average.
        averages: the new moving average of each ∇c, before the correction; ``None`` where there is none.
    """

    param: Tensor
    grad: Tensor
    first: Tensor
    second: Tensor
    step: Tensor | None
    has_first: bool
    held: list[Tensor]
    a: list[Tensor]
    averages: list[Tensor | None]


@dataclass
class _Element:
    """What a rule computes of one row, in the computing dtype.

    Attributes:
        direction: d.
        constraints: P⁻¹a of each constraint.
        metric: diag P; ``None`` for P = I.
        first: the new momentum buffer or first moment.
        second: the new second moment.
    """

    direction: Tensor
    constraints: list[Tensor]
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
    _aliasing.check(operands.lists(), written(rule, operands.constraints))


def _owners(rule: Rule, operands: Operands) -> Sequence[Tensor]:
    """Return the tensors that the step changes: the directions of a projection, else the parameters."""
    return operands.grads if rule is Rule.PROJECT else operands.params  # type: ignore[return-value]  # none is None


class Step:
    """One step in plain PyTorch: :meth:`stats`, :meth:`solve`, :meth:`apply_`.

    Args:
        rule: the kind of step.
        operands: the tensors of this step.
        rows: index of each constraint among the optimizer's.
        hyper, control, sums, report: the buffers of :class:`~unlearn_ext.ops.TwoPhase`.
    """

    def __init__(
        self,
        rule: Rule,
        operands: Operands,
        rows: Sequence[int],
        hyper: Tensor,
        control: Tensor,
        sums: Tensor,
        report: Tensor,
    ) -> None:
        self.rule, self.operands = rule, operands
        self.hyper, self.sums, self.summary = hyper, sums, report
        self.limits = control[0]
        self.control = [control[1 + row] for row in rows]
        self.report = [report[1 + row] for row in rows]

    def stats(self) -> None:
        """Write the sums of every group."""
        columns = Sums(slots_for(len(self.report)))
        weights = [_next_weight(c, report) for c, report in zip(self.control, self.report, strict=True)]
        self.sums.zero_()
        for row, group in enumerate(self.operands.groups):
            values, sums = self._row(row, weights), self.sums[group]
            e = _ELEMENTS[self.rule](values, self.hyper[group])
            weighted = e.direction if e.metric is None else e.direction * e.metric
            sums[columns.SQ_DIRECTION] += _dot(e.direction, weighted, sums)
            sums[columns.RAW_GRAD] += _dot(values.grad, values.grad, sums)
            for i, (held, a) in enumerate(zip(values.held, values.a, strict=True)):
                sums[columns.dot(i)] += _dot(a, e.direction, sums)
                sums[columns.raw(i)] += _dot(held, held, sums)
                for j in range(i, len(values.a)):
                    sums[columns.gram(i, j)] += _dot(a, e.constraints[j], sums)

    def solve(self) -> None:
        """Solve for λ over all groups; write ψ, λ, the clipping factor and the flags to the report.

        The QP is min ½λᵀGλ − λᵀb with G_ij = Σμ⟨a_i,P⁻¹a_j⟩ and b_i = Ψ_i − Σμ⟨a_i,d⟩, summed over the groups, μ each
        group's learning rate.
        """
        t = Totals(self.rule, self.sums, self.hyper, len(self.report))
        integrals = [_integral(c, report) for c, report in zip(self.control, self.report, strict=True)]
        decreases = [
            _required_decrease(c, report, integral, t, i)
            for i, (c, report, integral) in enumerate(zip(self.control, self.report, integrals, strict=True))
        ]
        lambdas = self._lambdas(t, decreases)
        sq_norm = t.sq_direction
        for i, lam in enumerate(lambdas):
            sq_norm = sq_norm + 2 * lam * t.dot[i]
        for i, lam in enumerate(lambdas):
            for j, other in enumerate(lambdas):
                sq_norm = sq_norm + lam * other * t.gram[i][j]
        clipped = self.limits[StepControl.MAX_NORM] / (sq_norm.clamp_min(0).sqrt() + 1e-6)
        scale = torch.where(clipped < 1, clipped, torch.ones_like(clipped))
        good = torch.isfinite(self.sums).all()
        for report, decrease, lam in zip(self.report, decreases, lambdas, strict=True):
            good = good & torch.isfinite(report[Report.CONSTRAINT]) & torch.isfinite(decrease)
            good = good & (lam.abs() <= torch.finfo(torch.float32).max)
        self._write_report(t, integrals, decreases, lambdas, scale, good)

    def _lambdas(self, t: "Totals", decreases: list[Tensor]) -> list[Tensor]:
        demands = [decrease - dot for decrease, dot in zip(decreases, t.lr_dot, strict=True)]
        if not demands:
            return []
        if len(demands) == 1:
            gram, equality = t.lr_gram[0][0], self.control[0][Control.EQUALITY] != 0
            lam = torch.where(gram > 0, demands[0] / gram, torch.zeros_like(gram))
            lambdas = [torch.where((lam < 0) & ~equality, torch.zeros_like(lam), lam)]  # a NaN stays a NaN
        else:
            gram = torch.stack([torch.stack(row) for row in t.lr_gram])
            equalities = [bool(c[Control.EQUALITY] != 0) for c in self.control]
            solution = solve_dual(gram.cpu().numpy(), [float(demand) for demand in demands], equalities)
            lambdas = list(torch.as_tensor(solution.multipliers).to(self.summary))
        limits = [c[Control.LAMBDA_MAX] for c in self.control]
        return [
            torch.where(lam > most, most, torch.where(lam < -most, -most, lam))
            for lam, most in zip(lambdas, limits, strict=True)
        ]

    def _write_report(
        self,
        t: "Totals",
        integrals: list[Tensor],
        decreases: list[Tensor],
        lambdas: list[Tensor],
        scale: Tensor,
        good: Tensor,
    ) -> None:
        summary = self.summary
        summary[1:, Report.PSI : KEPT] = 0  # also those of constraints that take no part
        for i, (c, report, lam) in enumerate(zip(self.control, self.report, lambdas, strict=True)):
            mu, zero = t.mean_lr[i], torch.zeros_like(lam)
            achieved = t.lr_dot[i]
            for j, other in enumerate(lambdas):
                achieved = achieved + other * t.lr_gram[i][j]
            shortfall = decreases[i] - scale * achieved
            is_short = (mu > 0) & ((shortfall > 0) | (c[Control.EQUALITY] != 0))
            report[Report.PSI] = torch.where(mu > 0, decreases[i] / mu, zero)
            report[Report.LAMBDA] = lam
            report[Report.MULTIPLIER] = lam * t.multiplier[i]
            report[Report.DOT] = torch.where(mu > 0, t.lr_dot[i] / mu, t.dot[i])
            report[Report.SQ_CONSTRAINT] = t.gram[i][i]
            report[Report.SHORTFALL] = torch.where(is_short, shortfall / mu, zero)
            report[Report.INTEGRAL] = torch.where(good, integrals[i], report[Report.INTEGRAL])
            weight = report[Report.AVERAGE_WEIGHT]
            report[Report.AVERAGE_WEIGHT] = torch.where(good, _next_weight(c, report), weight)
        summary[0, StepReport.SQ_DIRECTION] = t.sq_direction
        summary[0, StepReport.SCALE] = scale
        summary[0, StepReport.SKIPPED] = (~good).to(summary.dtype)
        summary[0, StepReport.SKIPPED_STEPS] += (~good).to(summary.dtype)

    def apply_(self) -> None:
        """Step in place: θ ← θ − μ·scale·(d + Σλ_i P⁻¹a_i), and update the state.

        If ``report[0, SKIPPED]`` is set, every value stays unchanged; a wrapped step is undone.
        """
        keep, scale = self.summary[0, StepReport.SKIPPED] != 0, self.summary[0, StepReport.SCALE]
        owners = _owners(self.rule, self.operands)
        weights = [report[Report.AVERAGE_WEIGHT] for report in self.report]  # solve() has stored the new ones
        for row, group in enumerate(self.operands.groups):
            owner, values = owners[row], self._row(row, weights)
            e = _ELEMENTS[self.rule](values, self.hyper[group])
            lr = self.hyper[group, Hyper.LR].to(values.param.dtype)
            correction = torch.zeros_like(e.direction)
            for report, constraint in zip(self.report, e.constraints, strict=True):
                correction = correction + constraint * report[Report.LAMBDA].to(constraint.dtype)
            g = (e.direction + correction) * scale.to(correction.dtype)
            if self.rule is Rule.PROJECT:
                _write(owner, g, keep)
            elif self.rule is Rule.WRAP:
                owner.copy_(torch.where(keep, values.first, values.param - correction * lr).to(owner.dtype))
            else:
                _write(owner, values.param - g * lr, keep)
            _write(self.operands.firsts[row], e.first, keep)
            _write(self.operands.seconds[row], e.second, keep)
            for averages, average in zip(self.operands.averages, values.averages, strict=True):
                _write(averages[row], average, keep)
            if (step := self.operands.steps[row]) is not None:
                step += torch.where(keep, 0.0, 1.0).to(step)

    def _row(self, row: int, weights: list[Tensor]) -> _Row:
        """Return the values of a row; ``weights`` are the sums of weights of the new averages."""
        operands, owner = self.operands, _owners(self.rule, self.operands)[row]
        dtype = torch.float64 if owner.dtype == torch.float64 else torch.float32

        def computed(tensor: Tensor | None) -> Tensor:
            return torch.zeros_like(owner, dtype=dtype) if tensor is None else tensor.to(dtype)

        held = [computed(grads[row]) for grads in operands.constraint_grads]
        a = list(held)
        averages: list[Tensor | None] = [None] * len(held)
        for i, (c, column) in enumerate(zip(self.control, operands.averages, strict=True)):
            if (average := column[row]) is not None:
                decay = c[Control.DECAY].to(dtype)
                averages[i] = average = average.to(dtype) * decay + held[i] * (1 - c[Control.DECAY]).to(dtype)
                a[i] = average * (1 / weights[i]).to(dtype)
        return _Row(
            param=owner.to(dtype),
            grad=computed(operands.grads[row]),
            first=computed(operands.firsts[row]),
            second=computed(operands.seconds[row]),
            step=operands.steps[row],
            has_first=operands.firsts[row] is not None,
            held=held,
            a=a,
            averages=averages,
        )


class Totals:
    """The sums over all groups: unweighted, and weighted by the groups' learning rates μ_k.

    Args:
        rule: the kind of step.
        sums: ``[groups, columns]``, see :class:`~unlearn_ext.ops.Sums`.
        hyper: ``[groups, 8]``.
        constraints: number of constraints.

    Attributes:
        sq_direction: ‖d‖²_P, 0-d.
        dot, lr_dot: ⟨a_i,d⟩ of each constraint, unweighted and weighted.
        gram, lr_gram: ⟨a_i,P⁻¹a_j⟩, unweighted and weighted.
        mean_lr: the μ of Ψ_i = μψ_i.
        multiplier: the Lagrangian's multiplier divided by λ: a momentum buffer is about (1 − τ)/(1 − β) gradients.
    """

    def __init__(self, rule: Rule, sums: Tensor, hyper: Tensor, constraints: int) -> None:
        columns, lr = Sums(slots_for(constraints)), hyper[:, Hyper.LR]
        momentum, dampening = hyper[:, Hyper.BETA1], hyper[:, Hyper.BETA2]
        has_buffer = (momentum > 0) & (dampening < 1) & (rule is Rule.SGD)
        of_momentum = torch.where(has_buffer, (1 - momentum) / (1 - dampening), torch.ones_like(lr))
        n = range(constraints)
        self.sq_direction = sums[:, columns.SQ_DIRECTION].sum()
        self.dot = [sums[:, columns.dot(i)].sum() for i in n]
        self.lr_dot = [(lr * sums[:, columns.dot(i)]).sum() for i in n]
        self.gram = [[sums[:, columns.gram(i, j)].sum() for j in n] for i in n]
        self.lr_gram = [[(lr * sums[:, columns.gram(i, j)]).sum() for j in n] for i in n]
        self.mean_lr = [torch.where(self.gram[i][i] > 0, self.lr_gram[i][i] / self.gram[i][i], lr.mean()) for i in n]
        effective = [(lr * sums[:, columns.gram(i, i)] * of_momentum).sum() for i in n]
        self.multiplier = [
            torch.where(self.lr_gram[i][i] > 0, effective[i] / self.lr_gram[i][i], torch.ones_like(effective[i]))
            for i in n
        ]


def _dot(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    return (a.to(like.dtype) * b.to(like.dtype)).sum()


def _write(target: Tensor | None, value: Tensor | None, keep: Tensor) -> None:
    """Write ``value`` to ``target``, unless ``keep`` is set or there is no target."""
    if target is not None and value is not None:
        target.copy_(torch.where(keep, target, value.to(target.dtype)))


def _project(row: _Row, hyper: Tensor) -> _Element:
    return _Element(row.grad, row.a)


def _sgd(row: _Row, hyper: Tensor) -> _Element:
    h = hyper.to(row.param.dtype)
    signed = torch.where(hyper[Hyper.MAXIMIZE] != 0, -row.grad, row.grad)
    decayed = _decayed(signed, row.param, h[Hyper.WEIGHT_DECAY])
    if not row.has_first:
        return _Element(decayed, row.a)
    first = row.first * h[Hyper.BETA1] + decayed * (1 - h[Hyper.BETA2])
    if row.step is not None:  # a momentum buffer loaded from torch's SGD has no counter
        first = torch.where(row.step != 0, first, decayed)  # as in torch, the first gradient is not dampened
    direction = torch.where(h[Hyper.NESTEROV] != 0, decayed + first * h[Hyper.BETA1], first)
    return _Element(direction, row.a, first=first)


def _adamw(row: _Row, hyper: Tensor) -> _Element:
    dtype = row.param.dtype
    beta1, beta2, weight = hyper[Hyper.BETA1], hyper[Hyper.BETA2], hyper[Hyper.CONSTRAINT_WEIGHT].to(dtype)
    grad = torch.where(hyper[Hyper.MAXIMIZE] != 0, -row.grad, row.grad)
    t = row.step.to(hyper.dtype) + 1  # type: ignore[union-attr]  # AdamW has them
    first = row.first + (grad - row.first) * (1 - beta1).to(dtype)
    squares = grad * grad + _sum_of_squares(row.a, grad) * weight
    second = row.second * beta2.to(dtype) + squares * (1 - beta2).to(dtype)
    metric = second.sqrt() * (1 - beta2**t).rsqrt().to(dtype) + hyper[Hyper.EPS].to(dtype)
    adaptive = first * (1 / (1 - beta1**t)).to(dtype) / metric
    direction = _decayed(adaptive, row.param, hyper[Hyper.WEIGHT_DECAY].to(dtype))
    return _Element(direction, [a / metric for a in row.a], metric, first, second)


def _wrap(row: _Row, hyper: Tensor) -> _Element:
    dtype = row.param.dtype
    lr, beta2, weight = hyper[Hyper.LR], hyper[Hyper.BETA2], hyper[Hyper.CONSTRAINT_WEIGHT].to(dtype)
    t = row.step.to(hyper.dtype) + 1  # type: ignore[union-attr]  # the wrapper has them
    second = row.second * beta2.to(dtype) + row.grad * row.grad * (1 - beta2).to(dtype)
    squares = second * (1 / (1 - beta2**t)).to(dtype) + _sum_of_squares(row.a, row.grad) * weight
    metric = squares.sqrt() + hyper[Hyper.EPS].to(dtype)
    direction = (row.first - row.param) * torch.where(lr > 0, 1 / lr, torch.zeros_like(lr)).to(dtype)
    return _Element(direction, [a / metric for a in row.a], metric, second=second)


_Rule = Callable[[_Row, Tensor], _Element]
# How each rule computes the values of a row from its operands and hyperparameters.
_ELEMENTS: dict[Rule, _Rule] = {Rule.PROJECT: _project, Rule.SGD: _sgd, Rule.ADAMW: _adamw, Rule.WRAP: _wrap}


def _sum_of_squares(gradients: list[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for grad in gradients:
        total = total + grad * grad
    return total


def _decayed(direction: Tensor, param: Tensor, weight_decay: Tensor) -> Tensor:
    """Add weight decay to the direction; without decay return it unchanged, since 0·∞ would be NaN."""
    return torch.where(weight_decay == 0, direction, direction + param * weight_decay)


def _next_weight(control: Tensor, report: Tensor) -> Tensor:
    return report[Report.AVERAGE_WEIGHT] * control[Control.DECAY] + (1 - control[Control.DECAY])


def _integral(control: Tensor, report: Tensor) -> Tensor:
    integral, gain = report[Report.INTEGRAL], control[Control.INTEGRAL_GAIN]
    gap, reach = report[Report.CONSTRAINT] - control[Control.EPSILON], control[Control.EPSILON].abs()
    bound = reach / torch.where(gain > 0, gain, torch.ones_like(gain))
    integrates = (control[Control.KIND] == Kind.EPSILON_GAP) & (gain > 0) & ~(gap.abs() > 0.5 * reach)
    return torch.where(integrates, torch.minimum(torch.maximum(integral + gap, -bound), bound), integral)


def _required_decrease(control: Tensor, report: Tensor, integral: Tensor, t: Totals, i: int) -> Tensor:
    """Return Ψ = μψ, the first-order decrease of c that the control function requires of this step."""
    kind, alpha, delta = control[Control.KIND], control[Control.ALPHA], control[Control.DELTA]
    mean_lr = t.mean_lr[i]
    gap = report[Report.CONSTRAINT] - control[Control.EPSILON]
    shape = (
        torch.where(gap < 0, -1.0, 1.0).to(gap.dtype) * gap.abs() ** delta + control[Control.INTEGRAL_GAIN] * integral
    )
    by_gap = torch.where(alpha.isnan(), control[Control.RATE], mean_lr * alpha) * shape
    by_norm = mean_lr * alpha * t.gram[i][i] ** (0.5 * delta)
    given = mean_lr * control[Control.GIVEN_PSI]
    decrease = torch.where(kind == Kind.EPSILON_GAP, by_gap, torch.where(kind == Kind.GRADIENT_NORM, by_norm, given))
    cap = control[Control.CAP] * t.lr_gram[i][i]
    decrease = torch.where(decrease > cap, cap, decrease)
    return torch.where((control[Control.EQUALITY] != 0) & (decrease < -cap), -cap, decrease)
