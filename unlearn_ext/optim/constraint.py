"""g1 and f1, held between the constraint's backward pass and the step; and the two phases that meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, repeat
from operator import is_not

import torch
from torch import Tensor
from torch.amp import GradScaler

from .. import ops
from ..control import EpsilonGap, GradientNorm, StepStats
from ..layout import Control, Report, Rule
from ..ops import TwoPhase
from ..reference import Operands
from . import distributed
from .amp import unscale_held_
from .distributed import Replicas
from .smoothing import Smoothing

ControlFunction = GradientNorm | EpsilonGap | Callable[[StepStats], Tensor]


class Constraint:
    """What is held, what was asked, and the numbers that outlive a step.

    Attributes:
        grads: g1 of each parameter, in the optimizer's order; empty where nothing is held.
        value: f1, 0-d; ``None`` where nothing is held.
        scaled: whether a ``GradScaler`` scaled what is held; g1 itself is unscaled already.
    """

    def __init__(
        self,
        control: ControlFunction,
        max_norm: float | None,
        lambda_max: float | None,
        fused: bool | None,
        smoothing: Smoothing,
        process_group: Replicas,
    ) -> None:
        for name, limit in (("max_norm", max_norm), ("lambda_max", lambda_max)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit!r} must be positive, or None for no limit")
        self.control, self.max_norm, self.lambda_max, self.fused = control, max_norm, lambda_max, fused
        self.smoothing, self.process_group = smoothing, distributed.checked(process_group)
        self.phases: TwoPhase | None = None
        self.carried: Tensor | None = None  # the report of phases that were left behind
        self._written_to: Tensor | None = None
        self.release()

    def hold(self, value: Tensor, params: list[Tensor], scaler: GradScaler | None = None) -> None:
        """Moves every ``p.grad`` to g1; a second call before the step adds to it, as gradient accumulation does."""
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise ValueError(
                "hold_constraint: f1 must be a real tensor with one element, the loss whose backward() you called"
            )
        grads = [p.grad for p in params]
        if distributed.initialised():
            grads = distributed.owned(grads)
        if self.value is None and not any(map(is_not, grads, repeat(None))):
            raise RuntimeError("hold_constraint: no parameter has a gradient; call f1.backward() first")
        for param in params:
            param.grad = None
        if scaler is not None and scaler.is_enabled():
            unscale_held_(params, grads, scaler)
            self.scaled = True
        held = self.held(params)
        self.grads = grads if self.value is None else list(map(_added, held, grads))
        value = value.detach().reshape(()).resolve_neg()
        if not value.is_floating_point():
            value = value.double()
        self.value = value if self.value is None else self.value + value

    def held(self, params: list[Tensor]) -> list[Tensor | None]:
        """g1 of each parameter; those of a group added since it was held have none."""
        return self.grads + [None] * (len(params) - len(self.grads))

    def release(self) -> None:
        self.grads: list[Tensor | None] = []
        self.value: Tensor | None = None
        self.scaled = False

    def run(
        self,
        rule: Rule,
        operands: Operands,
        hyper: list[list[float | Tensor]],
        device: torch.device,
        averages: list[Tensor | None] | None = None,
    ) -> None:
        """Both phases of one step; ``averages`` of g1, where it is smoothed."""
        if self.value is not None and self.value.device != device:
            self.value = self.value.to(device)
        smooth = self.smoothing if self.value is not None and self.smoothing.on else None
        if smooth:
            self.value = smooth.apply(self.value, operands.constraint_grads, averages or [None] * len(operands))
        several, shards = distributed.initialised(), None
        if several and distributed.has_shards(operands):
            shards = distributed.Shards(operands, hyper, self.process_group)
            operands, hyper = shards.operands, shards.hyper
        elif several and self.value is not None:
            self.value = distributed.averaged(self.value, self.process_group)
        phases = self._phases_on(device, len(hyper))
        self.write_values(hyper, self.value is not None, phases.hyper, phases.control)
        phases.begin(rule, operands, self.value)
        by_caller = self.value is not None and not hasattr(self.control, "coefficients")
        phases.stats(solve=not by_caller and shards is None)
        if shards is not None:
            shards.reduce_(phases.sums, phases.report)
        if by_caller:
            self._solve_with_callable(phases)
        elif shards is not None:
            phases.solve()
        phases.apply_()
        if smooth:
            smooth.keep(phases.report[Report.SKIPPED] != 0)
        self.release()

    def stats(self) -> StepStats:
        if self.phases is None:
            raise RuntimeError("stats: no step has been taken yet")
        report = self.phases.report.clone()
        columns = (
            Report.CONSTRAINT,
            Report.PSI,
            Report.LAMBDA,
            Report.DOT,
            Report.SQ_CONSTRAINT,
            Report.SQ_DIRECTION,
            Report.SCALE,
        )
        return StepStats(*(report[column] for column in columns), skipped=report[Report.SKIPPED] != 0)

    @property
    def report(self) -> Tensor:
        """The numbers that outlive a step: the count of skipped steps and the integral are among them."""
        if self.phases is not None:
            return self.phases.report
        return torch.zeros(len(Report), dtype=torch.float64) if self.carried is None else self.carried

    def memory(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides the held gradients: 0-d tensors."""
        kept = {"skipped_steps": self.report[Report.SKIPPED_STEPS], "integral": self.report[Report.INTEGRAL]}
        kept |= self.smoothing.memory()
        return {name: tensor.clone() for name, tensor in kept.items()} | (
            {} if self.value is None else {"held": self.value}
        )

    def remember(self, memory: dict[str, Tensor], grads: list[Tensor | None]) -> None:
        """Takes up what :meth:`memory` kept, and gradients that were held with it."""
        report = self.report.clone()
        report[Report.SKIPPED_STEPS], report[Report.INTEGRAL] = memory["skipped_steps"], memory["integral"]
        self.phases, self.carried = None, report
        self.smoothing.remember(memory)
        self.release()
        if "held" in memory:
            self.value, self.grads = memory["held"], grads

    def __getstate__(self) -> dict[str, object]:
        # Addresses and tables are made anew, and all numbers are written again.
        return {**self.__dict__, "phases": None, "carried": self.report, "_written_to": None}

    def _phases_on(self, device: torch.device, groups: int) -> TwoPhase:
        if self.phases is None or self.phases.device != device or len(self.phases.hyper) != groups:
            before, self.phases = self.report, TwoPhase(device, groups, self.fused)
            self.phases.report.copy_(before)
        return self.phases

    def write_values(self, rows: list[list[float | Tensor]], constrained: bool, hyper: Tensor, control: Tensor) -> None:
        """To the device only what changed since the last step wrote to the same place."""
        if self._written_to is not control:
            self._written_to, self._hyper_written, self._control_written = control, None, None
        self._hyper_written = _write(hyper, chain.from_iterable(rows), self._hyper_written)
        self._control_written = _write(control, self._control_block(constrained), self._control_written)

    def _control_block(self, constrained: bool) -> list[float | Tensor]:
        if not constrained:
            coefficients = ops.UNCONSTRAINED
        elif hasattr(self.control, "coefficients"):
            coefficients = self.control.coefficients()
        elif callable(self.control):
            coefficients = ops.GIVEN_PSI
        else:
            raise TypeError(f"control={self.control!r} must be EpsilonGap, GradientNorm or a callable")
        return ops.control_block(coefficients, self.max_norm, self.lambda_max)

    def _solve_with_callable(self, phases: TwoPhase) -> None:
        """ψ by the user's callable, which sees the sums of this step; solved for ψ = 0 first to name them."""
        report = phases.report.clone()
        phases.control[Control.GIVEN_PSI] = 0.0
        phases.solve()
        psi = self.control(self.stats())
        phases.report.copy_(report)
        phases.control[Control.GIVEN_PSI].copy_(torch.as_tensor(psi))
        phases.solve()


def _write(target: Tensor, values: Iterable[float | Tensor], before: list[float] | None) -> list[float]:
    """To the device only numbers that changed; a value that is a tensor is there already and is copied each time.

    Args:
        target: of as many elements as there are values.
        values: numbers or 0-d tensors.
        before: what the last call returned.
    """
    numbers, tensors = [], []
    for index, value in enumerate(values):
        if isinstance(value, Tensor):
            tensors.append((index, value))
            value = 0.0
        numbers.append(float(value))
    if numbers != before:
        target.copy_(torch.tensor(numbers, dtype=target.dtype).view_as(target), non_blocking=True)
    for index, tensor in tensors:
        target.view(-1)[index].copy_(tensor.detach().reshape(()))
    return numbers


def _added(held: Tensor | None, grad: Tensor | None) -> Tensor | None:
    if held is None or grad is None:
        return grad if held is None else held
    return held.add_(grad)
