"""The constrained step: ψ, the two phases, and the values that persist between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.amp import GradScaler

from .. import ops
from ..ops import TwoPhase
from ..ops.layout import Control, Operands, Report, Rule
from . import _distributed
from ._distributed import Replicas
from ._held import HeldGradients
from ._smoothing import Smoothing
from .control import EpsilonGap, GradientNorm, StepStats

ControlFunction = GradientNorm | EpsilonGap | Callable[[StepStats], Tensor]

#: Positions in the report of the values that persist between steps.
OUTLIVING = {"skipped_steps": Report.SKIPPED_STEPS, "integral": Report.INTEGRAL}


class Constraint:
    """A constraint f1 ≤ ε on the steps of one optimizer.

    Attributes:
        held: f1 and ∇f1 for the next step.
        kept: the values that persist between steps, 0-d tensors; a checkpoint has them under ``"constraint"``.
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
        self.smoothing, self.process_group = smoothing, _distributed.checked(process_group)
        self.held = HeldGradients()
        self.phases: TwoPhase | None = None
        self.kept = {name: torch.zeros((), dtype=torch.float64) for name in (*OUTLIVING, *smoothing.KEPT)}
        self._written_to: Tensor | None = None

    def hold(self, value: Tensor, params: list[Tensor], scaler: GradScaler | None = None) -> None:
        """Hold f1 and every ``p.grad`` for the next step; see :meth:`HeldGradients.hold`."""
        if self.control is None:
            raise RuntimeError(
                "hold_constraint: the optimizer has no control, which says how fast f1 is to fall; make it with "
                "control=EpsilonGap(epsilon=...), or set optimizer.control"
            )
        self.held.hold(value, params, scaler)

    def run(
        self,
        rule: Rule,
        operands: Operands,
        hyper: list[list[float | Tensor]],
        device: torch.device,
        averages: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Run both phases of one step; ``averages`` are the moving averages of g1, if it is smoothed."""
        value = None if self.held.value is None else self.held.value.to(device)
        smooth = self.smoothing if value is not None and self.smoothing.on else None
        grads, held = operands.grads, operands.constraint_grads
        if smooth and value is not None:
            value = smooth.apply(value, held, averages or [None] * len(operands), self.kept)
        several, shards = _distributed.initialised(), None
        if several and _distributed.has_shards(operands):
            shards = _distributed.Shards(operands, hyper, self.process_group)
            operands, hyper = shards.operands, shards.hyper
        elif several and value is not None:
            value = _distributed.averaged(value, self.process_group)
        phases = self._phases_on(device, len(hyper))
        self.write_values(hyper, value is not None, phases.hyper, phases.control)
        phases.begin(rule, operands, value)
        by_caller = value is not None and not hasattr(self.control, "coefficients")
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
        self.held.consume(grads, held)
        self.held.release()

    def stats(self) -> StepStats:
        """Return the values of the last step; raise ``RuntimeError`` before the first."""
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
        return StepStats._make([*(report[column] for column in columns), report[Report.SKIPPED] != 0])

    def adopt(self, kept: dict[str, Tensor] | None) -> None:
        """Use the persistent values of a parameter group from now on, if they are not in use already."""
        if kept is not None and kept is not self.kept:
            self.kept, self.phases = kept, None

    def remember(self, kept: dict[str, Tensor], params: list[Tensor], grads: list[Tensor | None]) -> None:
        """Load what a checkpoint has under ``"constraint"``, and the gradients that were held when it was saved."""
        self.held.release()
        if "held" in kept:
            self.held.restore(kept["held"], params, grads)
        self.adopt({name: kept[name] for name in self.kept})

    def __getstate__(self) -> dict[str, object]:
        # Addresses and tables do not survive pickling: make them again, and write all numbers again.
        return {**self.__dict__, "phases": None, "_written_to": None}

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
        """Write the step's numbers to the buffers; skip a copy to the device if nothing changed since the last step."""
        if self._written_to is not control:
            self._written_to, self._hyper_written, self._control_written = control, None, None
        self._hyper_written = _write(hyper, chain.from_iterable(rows), self._hyper_written)
        self._control_written = _write(control, self._control_block(constrained), self._control_written)

    def _control_block(self, constrained: bool) -> list[float | Tensor]:
        control = self.control
        coefficients: Sequence[float | Tensor]
        if not constrained:
            coefficients = ops.UNCONSTRAINED
        elif control is not None and hasattr(control, "coefficients"):
            coefficients = control.coefficients()
        elif callable(control):
            coefficients = ops.GIVEN_PSI
        else:
            raise TypeError(f"control={self.control!r} must be EpsilonGap, GradientNorm or a callable")
        return ops.control_block(coefficients, self.max_norm, self.lambda_max)

    def _solve_with_callable(self, phases: TwoPhase) -> None:
        """Solve with the ψ of the user's callable; solve for ψ = 0 first to compute the statistics that it receives."""
        report = phases.report.clone()
        phases.control[Control.GIVEN_PSI] = 0.0
        phases.solve()
        psi = self.control(self.stats())  # type: ignore[operator, misc]  # it has no coefficients
        phases.report.copy_(report)
        phases.control[Control.GIVEN_PSI].copy_(torch.as_tensor(psi))
        phases.solve()


def _write(target: Tensor, values: Iterable[float | Tensor], before: list[float] | None) -> list[float]:
    """Write values to ``target``; skip the copy from the host if no number changed, and always copy tensors.

    Args:
        target: tensor with as many elements as there are values.
        values: numbers or 0-d tensors.
        before: return value of the last call, or ``None`` to write everything.

    Returns:
        The numbers, with 0 in place of tensors, for ``before`` of the next call.
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
