"""Every operation of the kernels in plain PyTorch: the reference in tests, and the fallback without a kernel.

The formulas are those of ``csrc/rules.h`` and ``csrc/control.h``. Half-precision tensors are computed in float32,
float64 ones in float64; sums are float64 where the device has it. λ is computed on the host, so a step synchronises.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import _aliasing
from ._control import FORGET, Measured, fresh_weight, required_decrease
from ._qp import Array, solve_dual
from .layout import (
    KEPT,
    Control,
    Hyper,
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
        before: its moving average before this step; ``None`` where there is none.
        a: what the step uses of each ∇c: itself, or its new average.
    """

    param: Tensor
    grad: Tensor
    first: Tensor
    second: Tensor
    step: Tensor | None
    has_first: bool
    held: list[Tensor]
    before: list[Tensor | None]
    a: list[Tensor]


@dataclass
class _Element:
    """What a rule computes of one row, in the computing dtype.

    Attributes:
        direction: d.
        constraints: P⁻¹a of each constraint.
        metric: diag P.
        first: the new momentum buffer or first moment.
        second: the new second moment.
    """

    direction: Tensor
    constraints: list[Tensor]
    metric: Tensor | float = 1.0
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
        self.limits, self.rows = control[0], rows
        self.control = [control[1 + row] for row in rows]
        self.report = [report[1 + row] for row in rows]

    def stats(self) -> None:
        """Write the sums of every group."""
        columns = Sums(slots_for(len(self.report)))
        fresh = [fresh_weight(c.tolist(), report.tolist()) for c, report in zip(self.control, self.report, strict=True)]
        self.sums.zero_()
        for row, group in enumerate(self.operands.groups):
            values, sums = self._row(row, fresh), self.sums[group]
            e = _ELEMENTS[self.rule](values, self.hyper[group])
            sums[columns.SQ_DIRECTION] += _dot(e.direction, e.direction * e.metric, sums)
            sums[columns.SQ_GRAD] += _dot(values.grad, values.grad / e.metric, sums)
            for i, (held, before, a) in enumerate(zip(values.held, values.before, values.a, strict=True)):
                sums[columns.dot(i)] += _dot(a, e.direction, sums)
                sums[columns.power(i)] += _dot(held, held / e.metric, sums)
                if before is not None:
                    sums[columns.aligned(i)] += _dot(before, held / e.metric, sums)
                for j in range(i, len(values.a)):
                    sums[columns.gram(i, j)] += _dot(a, e.constraints[j], sums)

    def solve(self) -> None:
        """Solve for λ over all groups; write ψ, λ, the clipping factor and the flags to the report.

        The QP is min ½λᵀGλ − λᵀb with G_ij = Σμ⟨a_i,P⁻¹a_j⟩ and b_i = Ψ_i − Σμ⟨a_i,d⟩, summed over the groups, μ each
        group's learning rate. It is solved on the host.
        """
        sums, report = self.sums.double().cpu().numpy(), self.summary.tolist()
        control = [c.tolist() for c in self.control]
        states = [report[1 + row].copy() for row in self.rows]
        t = Totals(self.rule, sums, self.hyper.double().cpu().numpy(), len(states))
        carried, size = np.zeros(len(states)), 1.0
        if self.rule is Rule.WRAP:
            carried = np.array([state[Report.CARRIED] for state in states])
            size = t.take_out(carried)
        demands = [
            required_decrease(c, t.measured(i, s), s) for i, (c, s) in enumerate(zip(control, states, strict=True))
        ]
        with np.errstate(all="ignore"):
            lam = self._multipliers(t, np.array(demands), control, size)
            sq_norm = t.sq_direction + 2 * lam @ t.dot + lam @ t.gram @ lam
            clipped = self.limits[StepControl.MAX_NORM].item() / (math.sqrt(max(sq_norm, 0.0)) + 1e-6)
            scale = clipped if clipped < 1 else 1.0
            shortfall = np.array(demands) - scale * (t.lr_dot + t.lr_gram @ lam)
        values = [state[Report.CONSTRAINT] for state in states]
        good = bool(np.isfinite(sums).all() and np.isfinite([*values, *demands]).all())
        good = good and bool((np.abs(lam) <= np.finfo(np.float32).max).all())

        for row in report[1:]:
            row[Report.PSI : KEPT] = [0.0] * (KEPT - Report.PSI)  # constraints that take no part keep zeros
        for i, (row, state) in enumerate(zip(self.rows, states, strict=True)):
            mine, mu = report[1 + row], t.mean_lr[i]
            is_short = mu > 0 and (shortfall[i] > 0 or control[i][Control.EQUALITY])
            mine[Report.PSI] = demands[i] / mu if mu > 0 else 0.0
            mine[Report.LAMBDA] = lam[i] - size * carried[i]
            mine[Report.MULTIPLIER] = lam[i] / size * t.multiplier[i]
            if self.rule is Rule.WRAP:
                gram, slack = t.lr_gram[i, i], min(float(shortfall[i]), 0.0)
                aim = (lam[i] + slack / gram if gram > 0 else lam[i]) / size
                mean = carried[i] + FORGET * (aim - carried[i])
                state[Report.CARRIED] = mean if control[i][Control.EQUALITY] else max(mean, 0.0)
            mine[Report.DOT] = t.lr_dot[i] / mu if mu > 0 else t.dot[i]
            mine[Report.SQ_CONSTRAINT] = t.gram[i][i]
            mine[Report.SHORTFALL] = shortfall[i] / mu if is_short else 0.0
            mine[Report.FRESH] = fresh_weight(control[i], mine)
            if good:
                mine[KEPT:] = state[KEPT:]
        of_step = report[0]
        of_step[StepReport.SQ_DIRECTION], of_step[StepReport.SCALE] = t.sq_direction, scale
        of_step[StepReport.SKIPPED] = float(not good)
        of_step[StepReport.SKIPPED_STEPS] += not good
        self.summary.copy_(torch.tensor(report, dtype=self.summary.dtype))

    def _multipliers(self, t: "Totals", demands: Array, control: list[list[float]], size: float) -> Array:
        equalities = [bool(c[Control.EQUALITY]) for c in control]
        if len(control) == 1:
            gram, demand = t.lr_gram[0, 0], demands[0] - t.lr_dot[0]
            lam = np.array([demand / gram if gram > 0 else 0.0])
            if lam[0] < 0 and not equalities[0]:  # a NaN stays a NaN
                lam[0] = 0.0
        elif control:
            lam = solve_dual(t.lr_gram, demands - t.lr_dot, equalities).multipliers
        else:
            lam = np.zeros(0)
        most = size * np.array([c[Control.LAMBDA_MAX] for c in control])
        limited: Array = np.clip(lam, -most, most)
        return limited

    def apply_(self) -> None:
        """Step in place: θ ← θ − μ·scale·(d + Σλ_i P⁻¹a_i), and update the state.

        If ``report[0, SKIPPED]`` is set, every value stays unchanged; a wrapped step is undone.
        """
        keep, scale = self.summary[0, StepReport.SKIPPED] != 0, self.summary[0, StepReport.SCALE]
        owners = _owners(self.rule, self.operands)
        fresh = [report[Report.FRESH].item() for report in self.report]
        for row, group in enumerate(self.operands.groups):
            owner, values = owners[row], self._row(row, fresh)
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
            for averages, a in zip(self.operands.averages, values.a, strict=True):
                _write(averages[row], a, keep)
            if (step := self.operands.steps[row]) is not None:
                step += torch.where(keep, 0.0, 1.0).to(step)

    def _row(self, row: int, fresh: list[float]) -> _Row:
        """Return the values of a row; ``fresh`` are the weights of ∇c in their averages."""
        operands, owner = self.operands, _owners(self.rule, self.operands)[row]
        dtype = torch.float64 if owner.dtype == torch.float64 else torch.float32

        def computed(tensor: Tensor | None) -> Tensor:
            return torch.zeros_like(owner, dtype=dtype) if tensor is None else tensor.to(dtype)

        held = [computed(grads[row]) for grads in operands.constraint_grads]
        before = [None if column[row] is None else computed(column[row]) for column in operands.averages]
        a = [h if b is None else b * (1 - u) + h * u for h, b, u in zip(held, before, fresh, strict=True)]
        return _Row(
            param=owner.to(dtype),
            grad=computed(operands.grads[row]),
            first=computed(operands.firsts[row]),
            second=computed(operands.seconds[row]),
            step=operands.steps[row],
            has_first=operands.firsts[row] is not None,
            held=held,
            before=before,
            a=a,
        )


class Totals:
    """The sums over all groups: unweighted, and weighted by the groups' learning rates μ_k.

    Args:
        rule: the kind of step.
        sums: float64 ``[groups, columns]``, see :class:`~unlearn_ext.ops.Sums`.
        hyper: float64 ``[groups, 8]``.
        constraints: number of constraints.

    Attributes:
        sq_direction: ‖d‖²_P.
        dot, lr_dot: ⟨a_i,d⟩ of each constraint, unweighted and weighted.
        gram, lr_gram: ⟨a_i,P⁻¹a_j⟩, unweighted and weighted.
        mean_lr: the μ of Ψ_i = μψ_i.
        multiplier: the Lagrangian's multiplier divided by λ: a momentum buffer is about (1 − τ)/(1 − β) gradients.
    """

    def __init__(self, rule: Rule, sums: Array, hyper: Array, constraints: int) -> None:
        columns, lr, n = Sums(slots_for(constraints)), hyper[:, Hyper.LR], range(constraints)
        momentum, dampening = hyper[:, Hyper.BETA1], hyper[:, Hyper.BETA2]
        has_buffer = (momentum > 0) & (dampening < 1) & (rule is Rule.SGD)
        of_momentum = np.where(has_buffer, (1 - momentum) / np.where(dampening < 1, 1 - dampening, 1.0), 1.0)
        gram = sums[:, [[columns.gram(i, j) for j in n] for i in n]] if constraints else np.zeros((len(sums), 0, 0))
        dot = sums[:, [columns.dot(i) for i in n]]
        with np.errstate(all="ignore"):
            self.sq_direction = float(sums[:, columns.SQ_DIRECTION].sum())
            self._sq_grad = float(sums[:, columns.SQ_GRAD].sum())
            self.dot, self.lr_dot = dot.sum(0), lr @ dot
            self.gram, self.lr_gram = gram.sum(0), np.tensordot(lr, gram, 1)
            self._aligned = lr @ sums[:, [columns.aligned(i) for i in n]]
            self._power = lr @ sums[:, [columns.power(i) for i in n]]
            sq, lr_sq = self.gram.diagonal(), self.lr_gram.diagonal()
            self.mean_lr = np.where(sq > 0, lr_sq / sq, lr.mean())
            effective = (lr * of_momentum) @ gram.diagonal(axis1=1, axis2=2)
            self.multiplier = np.where(lr_sq > 0, effective / lr_sq, 1.0)

    def take_out(self, carried: Array) -> float:
        """Take the part of a wrapped optimizer's step that is due to Σλ̂_i∇c_i out of d; return s.

        ``csrc/solve.h`` explains it.

        Args:
            carried: λ̂ of each constraint.
        """
        with np.errstate(all="ignore"):
            length = float(np.sqrt(np.float64(self.sq_direction) / self._sq_grad))
            s = length if math.isfinite(length) and length > 0 else 1.0
            self.dot = self.dot - s * self.gram @ carried
            self.lr_dot = self.lr_dot - s * self.lr_gram @ carried
        return s

    def measured(self, i: int, report: list[float]) -> Measured:
        """Return what the control of constraint i sees."""
        return Measured(
            value=report[Report.CONSTRAINT],
            mean_lr=float(self.mean_lr[i]),
            sq_constraint=float(self.gram[i, i]),
            lr_sq_constraint=float(self.lr_gram[i, i]),
            lr_dot=float(self.lr_dot[i]),
            lr_aligned=float(self._aligned[i]),
            lr_power=float(self._power[i]),
        )


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
