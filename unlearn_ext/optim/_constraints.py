"""The constraints of one optimizer: their controls, what is held for the next step, and what persists between steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from math import inf, nan

import torch
from torch import Tensor
from torch.amp import GradScaler

from .. import ops
from ..ops import TwoPhase
from ..ops.layout import KEPT, Control, Operands, Report, Rule, StepReport
from . import _distributed
from ._distributed import Replicas
from ._held import HeldGradients
from ._ownership import clear, restore, set_aside
from .control import EpsilonGap, GradientNorm, StepStats

ControlFunction = GradientNorm | EpsilonGap | Callable[[StepStats], Tensor]
Controls = ControlFunction | dict[str, ControlFunction] | None

_TIMES_TO_SETTLE = 20  # in units of 1/rate steps, the time constant of the control
_READS_PER_CHECK = 100  # of `stats` on a GPU, since a check synchronises

#: The name of the only constraint of an optimizer whose ``control`` is not a dict.
UNNAMED = ""


def named(control: Controls) -> dict[str, ControlFunction]:
    """Return the controls by name, sorted, so that their order in the user's dict changes no bit of a step."""
    if control is None:
        return {}
    if not isinstance(control, dict):
        return {UNNAMED: control}
    for name in control:
        if not isinstance(name, str) or not name:
            raise ValueError(f"control: the constraint's name {name!r} must be a string that is not empty")
    return {name: control[name] for name in sorted(control)}  # torch.compile cannot sort the items


def key(prefix: str, name: str) -> str:
    """Return the key of a constraint's entry in a state dict."""
    return f"{prefix}.{name}" if name else prefix


class Constraints:
    """The constraints c_i ≤ ε_i on the steps of one optimizer.

    Args:
        control: one control function, or a dict of them by name.
        max_norm: upper limit of ‖g‖_P.
        lambda_max: upper limit of every |λ|.
        fused: as in :class:`~unlearn_ext.ops.TwoPhase`.
        grad_decay: decay of the moving average of every ∇c; 0 for none, ``None``: chosen by the measured noise.
        process_group: the processes that have replicas.
        held_dtype: dtype in which ∇c and its averages are kept; ``None``: the gradients' own.

    Attributes:
        held: c and ∇c of the constraints that take part in the next step.
        kept: what persists between steps; a checkpoint has it under ``"constraint"``: ``skipped_steps``, 0-d, and for
            each constraint ``state``, the columns of ``layout.Report`` from ``KEPT`` on.
    """

    def __init__(
        self,
        control: Controls,
        max_norm: float | None,
        lambda_max: float | None,
        fused: bool | None,
        grad_decay: float | None,
        process_group: Replicas,
        held_dtype: torch.dtype | None = None,
    ) -> None:
        for name, limit in (("max_norm", max_norm), ("lambda_max", lambda_max)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit!r} must be positive, or None for no limit")
        if grad_decay is not None and not 0 <= grad_decay < 1:
            raise ValueError(
                f"constraint_grad_ema={grad_decay!r} must lie in [0, 1), or be None for a decay that follows the "
                "noise; 0 is no averaging"
            )
        named(control)
        self.control, self.max_norm, self.lambda_max, self.fused = control, max_norm, lambda_max, fused
        self.grad_decay = nan if grad_decay is None else grad_decay
        self.process_group = _distributed.checked(process_group)
        if held_dtype is not None and not held_dtype.is_floating_point:
            raise ValueError(f"held_dtype={held_dtype!r} must be a floating-point dtype, such as torch.bfloat16")
        self.held = HeldGradients(held_dtype)
        self.phases: TwoPhase | None = None
        self.kept: dict[str, Tensor] = {"skipped_steps": torch.zeros((), dtype=torch.float64)}
        self._names: list[str] = []  # of the rows of the phases' report
        self._written_to: Tensor | None = None
        self._reads = 0
        self._warned: set[str] = set()

    def hold(self, value: Tensor, name: str | None, params: list[Tensor], scaler: GradScaler | None = None) -> None:
        """Hold c and every ``p.grad`` for the next step; see :meth:`HeldGradients.hold`."""
        self._refuse_without_control()
        self.held.hold(value, self._known(name), params, scaler)

    @contextmanager
    def interleaved(
        self, name: str | None, params: list[Tensor], scaler: GradScaler | None
    ) -> Iterator[Callable[[Tensor], None]]:
        """Set every ``p.grad`` aside, and hold what the block accumulates; see :meth:`EpsilonOptimizer.constraint`."""
        self._refuse_without_control()
        name = self._known(name)
        values: list[Tensor] = []
        aside = set_aside(params)
        before = self.held.by_name.get(name)
        try:
            self.held.put_back(name, params, scaler)
            yield values.append
            if not values:
                raise RuntimeError("constraint: call the function that `with` returns, with the value of c")
            self.held.hold(sum(values[1:], values[0]), name, params, scaler)
        except BaseException:
            self.held.by_name.pop(name, None)
            if before is not None:
                self.held.by_name[name] = before
            clear(params)
            raise
        finally:
            restore(params, aside)

    def _refuse_without_control(self) -> None:
        if self.control is None:
            raise RuntimeError(
                "hold_constraint: the optimizer has no control, which says how fast the constraint is to fall; make it "
                "with control=EpsilonGap(epsilon=...), or set optimizer.control"
            )

    def _known(self, name: str | None) -> str:
        """Return the name of a constraint, ``UNNAMED`` for the only one; raise for a name that does not exist."""
        names = named(self.control)
        if name is None and UNNAMED in names:
            return UNNAMED
        if name is None:
            raise ValueError(f"hold_constraint: say which constraint it is: {_listed(names)}")
        if not isinstance(name, str):
            raise TypeError(
                f"hold_constraint: the second argument is the constraint's name, not a {type(name).__name__}; "
                "pass a GradScaler as scaler=..."
            )
        if name not in names or not name:
            known = _listed(names) if UNNAMED not in names else "control is not a dict, so its constraint has no name"
            raise ValueError(f"hold_constraint: there is no constraint {name!r}; {known}")
        return name

    def run(self, rule: Rule, operands: Operands, hyper: list[list[float | Tensor]], device: torch.device) -> None:
        """Run both phases of one step on operands that have the held gradients of :attr:`held`."""
        names = self.held.names
        controls = named(self.control)
        self._refuse_unknown(names, controls)
        values: list[Tensor | None] = [self.held.value_of(name).to(device) for name in names]
        grads, held = operands.grads, operands.constraint_grads
        several, shards = _distributed.initialised(), None
        if several and _distributed.has_shards(operands):
            shards = _distributed.Shards(operands, hyper, self.process_group)
            operands, hyper = shards.operands, shards.hyper
        elif several and values:
            values = _distributed.averaged(values, self.process_group)
        phases = self._phases_on(device, len(hyper), list(controls))
        self.write_values(hyper, phases.hyper, phases.control)
        rows = self.rows_of(names)
        phases.begin(rule, operands, values, rows)
        by_caller = [name for name in names if not hasattr(controls[name], "coefficients")]
        phases.stats(solve=not by_caller and shards is None)
        if shards is not None:
            shards.reduce_(phases.sums, phases.report, rows)
        if by_caller:
            self._solve_with_callables(phases, by_caller, controls)
        elif shards is not None:
            phases.solve()
        phases.apply_()
        self.held.consume(grads, held)
        self.held.release()

    def prepare(self, device: torch.device, groups: int) -> None:
        """Create what the constraints keep from step to step, so that a checkpoint can be loaded into it."""
        self._phases_on(device, groups, list(named(self.control)))

    def carried(self, name: str) -> Tensor | None:
        """Return the running mean of a constraint's λ, 0-d on the parameters' device; ``None`` before a first step."""
        state = self.kept.get(key("state", name))
        return None if state is None else state[Report.CARRIED - KEPT]

    def rows_of(self, names: Iterable[str]) -> list[int]:
        """Return the index of each constraint among those of the last :meth:`run`."""
        return [self._names.index(name) for name in names]

    def is_ready(self, groups: int) -> bool:
        """Return whether a step was taken with as many groups and the same constraints."""
        return self.phases is not None and len(self.phases.hyper) == groups and self._names == list(named(self.control))

    def stats(self) -> StepStats | dict[str, StepStats]:
        """Return the values of the last step, by name if there are names; raise ``RuntimeError`` before the first."""
        if self.phases is None:
            raise RuntimeError("stats: no step has been taken yet")
        report = self.phases.report.clone()
        self._reads += 1
        if report.device.type == "cpu" or self._reads % _READS_PER_CHECK == 0:
            self._warn_if_unsettled(report)
        if isinstance(self.control, dict):
            return {name: _stats_of(report, row) for row, name in enumerate(self._names)}
        return _stats_of(report, 0)

    def _warn_if_unsettled(self, report: Tensor) -> None:
        """Warn, once for each constraint, if c has stayed away from ε for long; reads the report."""
        controls = named(self.control)
        for row, name in enumerate(self._names):
            control = controls.get(name)
            if name in self._warned or not isinstance(control, EpsilonGap) or control.alpha is not None:
                continue
            numbers = report[1 + row].tolist()
            if numbers[Report.UNSETTLED] < _TIMES_TO_SETTLE / float(control.rate):
                continue
            self._warned.add(name)
            remedy = (
                "a step on the constraint alone gains little: raise epsilon or the learning rate, or set cap=math.inf"
                if numbers[Report.SATURATED]
                else "use larger minibatches, or a smaller learning rate"
            )
            warnings.warn(
                f"{_called(name)} has stayed {numbers[Report.GAP]:+.3g} from its epsilon of "
                f"{float(control.epsilon):.3g} for {numbers[Report.UNSETTLED]:.0f} steps; {remedy}",
                stacklevel=4,
            )

    def adopt(self, kept: dict[str, Tensor] | None) -> None:
        """Use the persistent values of a parameter group from now on, if they are not in use already."""
        if kept is not None and kept is not self.kept:
            self.kept, self.phases = kept, None

    def remember(self, kept: dict[str, Tensor], held: HeldGradients) -> None:
        """Load what a checkpoint has under ``"constraint"``, and the gradients that were held when it was saved."""
        self.held.release()
        self.held.restore(held)
        states = {name: value for name, value in kept.items() if name.split(".")[0] in ("skipped_steps", "state")}
        self.adopt(states)

    def __getstate__(self) -> dict[str, object]:
        # Addresses and tables do not survive pickling: make them again, and write all numbers again.
        return {**self.__dict__, "phases": None, "_written_to": None}

    def _refuse_unknown(self, names: Iterable[str], controls: Mapping[str, ControlFunction]) -> None:
        for name in names:
            if name not in controls:
                raise RuntimeError(
                    f"step: {_called(name)} is held, but optimizer.control has no such constraint any more; change "
                    "control before hold_constraint, not between it and step()"
                )

    def _phases_on(self, device: torch.device, groups: int, names: list[str]) -> TwoPhase:
        phases = self.phases
        if phases is None or phases.device != device or len(phases.hyper) != groups or self._names != names:
            before, rows = None if phases is None else phases.report, {name: i for i, name in enumerate(self._names)}
            self.phases = phases = TwoPhase(device, groups, len(names), self.fused)
            for row, name in enumerate(names):
                if before is not None and name in rows:
                    phases.report[1 + row].copy_(before[1 + rows[name]])
            if before is not None:
                phases.report[0].copy_(before[0])
            self._keep_in(phases.report, names)
            self._names = names
        return phases

    def _keep_in(self, report: Tensor, names: list[str]) -> None:
        """Move what persists between steps to the report, so that the kernels update it; forget other constraints."""
        places = {"skipped_steps": report[0, StepReport.SKIPPED_STEPS]}
        places |= {key("state", name): report[1 + row, KEPT:] for row, name in enumerate(names)}
        for name, place in places.items():
            if name in self.kept:
                place.copy_(self.kept[name])
        self.kept.clear()  # the parameter groups refer to this dict
        self.kept.update(places)

    def write_values(self, rows: list[list[float | Tensor]], hyper: Tensor, control: Tensor) -> None:
        """Write the step's numbers to the buffers; skip a copy to the device if nothing changed since the last step."""
        if self._written_to is not control:
            self._written_to, self._hyper_written, self._control_written = control, None, None
        block = ops.control_block([self._row_of(c) for c in named(self.control).values()], self.max_norm)
        self._hyper_written = _write(hyper, list(chain.from_iterable(rows)), self._hyper_written)
        self._control_written = _write(control, block, self._control_written)

    def _row_of(self, control: ControlFunction) -> list[float | Tensor]:
        """Return the entries of ``layout.Control`` of one constraint."""
        coefficients: Sequence[float | Tensor]
        if hasattr(control, "coefficients"):
            coefficients = control.coefficients()
        elif callable(control):
            coefficients = ops.GIVEN_PSI
        else:
            raise TypeError(f"control={control!r} must be EpsilonGap, GradientNorm or a callable, or a dict of these")
        most = inf if self.lambda_max is None else self.lambda_max
        return [*coefficients, 0.0, getattr(control, "equality", False), most, self.grad_decay]

    def _solve_with_callables(
        self, phases: TwoPhase, names: list[str], controls: Mapping[str, ControlFunction]
    ) -> None:
        """Solve with the ψ of the user's callables; solve for ψ = 0 first to compute the statistics they receive."""
        report, rows = phases.report.clone(), self.rows_of(names)
        for row in rows:
            phases.control[1 + row, Control.GIVEN_PSI] = 0.0
        phases.solve()
        stats = phases.report.clone()
        phases.report.copy_(report)
        for row, name in zip(rows, names, strict=True):
            psi = controls[name](_stats_of(stats, row))  # type: ignore[operator]  # it has no coefficients
            phases.control[1 + row, Control.GIVEN_PSI].copy_(torch.as_tensor(psi))
        phases.solve()


def _stats_of(report: Tensor, row: int) -> StepStats:
    of_step = report[0]
    mine = report[1 + row] if len(report) > 1 else torch.zeros_like(of_step)
    return StepStats(
        constraint=mine[Report.CONSTRAINT],
        psi=mine[Report.PSI],
        lam=mine[Report.MULTIPLIER],
        dot=mine[Report.DOT],
        sq_constraint=mine[Report.SQ_CONSTRAINT],
        shortfall=mine[Report.SHORTFALL],
        sq_direction=of_step[StepReport.SQ_DIRECTION],
        scale=of_step[StepReport.SCALE],
        gap=mine[Report.GAP],
        skipped=of_step[StepReport.SKIPPED] != 0,
    )


def _listed(names: Iterable[str]) -> str:
    listed = ", ".join(map(repr, names))
    return f"the constraints are {listed}" if listed else "control is an empty dict, which has no constraints"


def _called(name: str) -> str:
    return f"the constraint {name!r}" if name else "a constraint without a name"


def _write(target: Tensor, values: list[float | Tensor], before: list[float] | None) -> list[float]:
    """Write values to ``target``; skip the copy from the host if no number changed, and always copy tensors.

    Args:
        target: tensor with as many elements as there are values.
        values: numbers or 0-d tensors.
        before: return value of the last call, or ``None`` to write everything.

    Returns:
        The numbers, with 0 in place of tensors, for ``before`` of the next call.
    """
    numbers: list[float] = values  # type: ignore[assignment]  # corrected in the next line
    tensors: list[tuple[int, Tensor]] = []
    if any(map(isinstance, values, repeat(Tensor))):  # in C; a loop would take a tenth of a small step
        tensors = [(index, value) for index, value in enumerate(values) if isinstance(value, Tensor)]
        numbers = [0.0 if isinstance(value, Tensor) else value for value in values]
    if numbers != before:
        target.copy_(torch.tensor(numbers, dtype=target.dtype).view_as(target), non_blocking=True)
    for index, tensor in tensors:
        target.view(-1)[index].copy_(tensor.detach().reshape(()))
    return numbers
