"""g1 and f1, held between the constraint's backward pass and the step; and the two phases that meet them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from operator import is_, is_not

import torch
from torch import Tensor
from torch.amp import GradScaler

from .. import ops
from ..control import EpsilonGap, GradientNorm, StepStats
from ..ops import TwoPhase
from ..ops.layout import Control, Operands, Report, Rule
from . import distributed
from .amp import unscale_held_
from .distributed import Replicas
from .ownership import is_grad_alone, owned
from .smoothing import Smoothing

ControlFunction = GradientNorm | EpsilonGap | Callable[[StepStats], Tensor]

#: Where the report has the numbers that outlive a step.
OUTLIVING = {"skipped_steps": Report.SKIPPED_STEPS, "integral": Report.INTEGRAL}


class Constraint:
    """What is held, what was asked, and the numbers that outlive a step.

    Attributes:
        params: the parameters whose gradients are held; empty where nothing is.
        grads: g1 of each of them.
        value: f1, 0-d; ``None`` where nothing is held.
        scaled: whether a ``GradScaler`` scaled what is held; g1 itself is unscaled already.
        under_zero: whether ``ZeroRedundancyOptimizer`` made the optimizer, of a part of the parameters.
        kept: the numbers that outlive a step, 0-d tensors: what a checkpoint has under ``"constraint"``.
    """

    def __init__(
        self,
        control: ControlFunction | None,
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
        self.under_zero = False
        self.phases: TwoPhase | None = None
        self.kept = {name: torch.zeros((), dtype=torch.float64) for name in (*OUTLIVING, *smoothing.KEPT)}
        self._written_to: Tensor | None = None
        self._consumed: tuple[weakref.ref[Tensor], int] | None = None
        self.release()

    def hold(self, value: Tensor, params: list[Tensor], scaler: GradScaler | None = None) -> None:
        """Move every ``p.grad`` to g1; a second call before the step adds to it, as gradient accumulation does."""
        if self.control is None:
            raise RuntimeError(
                "hold_constraint: the optimizer has no control, which says how fast f1 is to fall; make it with "
                "control=EpsilonGap(epsilon=...), or set optimizer.control"
            )
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise ValueError(
                "hold_constraint: f1 must be a real tensor with one element, the loss whose backward() you called"
            )
        if self.under_zero:
            distributed.refuse_zero()
        if distributed.initialised():
            distributed.refuse_fsdp1(params)
        grads = [p.grad for p in params]
        if self.value is None:
            if not any(map(is_not, grads, repeat(None))):
                raise RuntimeError("hold_constraint: no parameter has a gradient; call f1.backward() first")
            self._refuse_consumed(params, grads)
        before = self.held(params)
        for param in params:
            param.grad = None
        grads = owned(grads)
        if scaler is not None and scaler.is_enabled():
            unscale_held_(params, grads, scaler)
            self.scaled = True
        self.params, self.grads = params, grads if self.value is None else list(map(_added, before, grads))
        value = value.detach().reshape(()).resolve_neg()
        value = value.clone() if value.is_floating_point() else value.double()
        self.value = value if self.value is None else self.value + value

    def held(self, params: list[Tensor]) -> list[Tensor | None]:
        """g1 of each parameter; those of a group added since it was held have none."""
        if self.value is None:
            return [None] * len(params)
        if len(params) == len(self.params) and all(map(is_, params, self.params)):
            return self.grads
        mine = {id(p): g for p, g in zip(self.params, self.grads, strict=True) if g is not None}
        grads = [mine.pop(id(param), None) for param in params]
        if mine:
            raise RuntimeError(
                f"∇f1 is held for {len(mine)} parameter{'s' if len(mine) > 1 else ''} that no group has any more; "
                "change param_groups before hold_constraint, not between it and step()"
            )
        return grads

    def release(self) -> None:
        self.params: list[Tensor] = []
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
        grads, held = operands.grads, operands.constraint_grads
        if smooth:
            self.value = smooth.apply(self.value, held, averages or [None] * len(operands), self.kept)
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
            smooth.keep(phases.report[Report.SKIPPED] != 0, self.kept)
        self.consume(grads, held)
        self.release()

    def consume(self, grads: list[Tensor | None], held: list[Tensor | None]) -> None:
        """Note a gradient that a step uses up, to tell whether it is still there when the next f1 is held."""
        both = (grad for grad, g1 in zip(grads, held, strict=True) if grad is not None and g1 is not None)
        witness = next(both, None)
        if witness is None:
            witness = next((grad for grad in grads if grad is not None), None)
        self._consumed = None if witness is None else (weakref.ref(witness), witness._version)

    def _refuse_consumed(self, params: list[Tensor], grads: list[Tensor | None]) -> None:
        """Raise where ``p.grad`` has what the last step used: ∇f2 would be taken along as ∇f1.

        A backward pass adds to ``p.grad`` in place, once: one that was zeroed before was written to twice.
        """
        witness, version = self._consumed or (lambda: None, 0)
        grad = witness()
        row = None if grad is None else next((row for row, g in enumerate(grads) if g is grad), None)
        if row is None or not is_grad_alone(params[row], known=2):  # known: grads and grad
            return
        writes = grad._version - version
        plain = type(grad) is Tensor  # a sharded gradient is added to below its wrapper, which counts no write
        if writes == 0 or (plain and writes == 1 and bool(grad.any())):
            raise RuntimeError(
                "hold_constraint: p.grad still has what the last step used, and f1.backward() added ∇f1 to it; call "
                "optimizer.zero_grad() before f1.backward()"
            )

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

    def adopt(self, kept: dict[str, Tensor] | None) -> None:
        """Use these numbers from now on, as a group has them, unless they are the ones in use."""
        if kept is not None and kept is not self.kept:
            self.kept, self.phases = kept, None

    def remember(self, kept: dict[str, Tensor], params: list[Tensor], grads: list[Tensor | None]) -> None:
        """Take up what a checkpoint has under ``"constraint"``, and gradients that were held with it."""
        self.release()
        if "held" in kept:
            self.value, self.params, self.grads = kept["held"], params, grads
        self.adopt({name: kept[name] for name in self.kept})

    def __getstate__(self) -> dict[str, object]:
        # Addresses and tables are made anew, and all numbers are written again.
        return {**self.__dict__, "phases": None, "_written_to": None, "_consumed": None}

    def _phases_on(self, device: torch.device, groups: int) -> TwoPhase:
        if self.phases is None or self.phases.device != device or len(self.phases.hyper) != groups:
            before = None if self.phases is None else self.phases.report
            self.phases = TwoPhase(device, groups, self.fused)
            if before is not None:
                self.phases.report.copy_(before)
            for name, entry in OUTLIVING.items():
                number = self.phases.report[entry]
                self.kept[name] = number.copy_(self.kept[name])
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
