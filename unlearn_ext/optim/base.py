"""What the optimizers share: holding the constraint's gradient, the control, the two phases, the stats."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from operator import is_, is_not

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import ops
from ..control import EpsilonGap, GradientNorm, StepStats
from ..layout import Control, Hyper, Report, Rule
from ..ops import TwoPhase
from ..reference import Operands
from . import distributed
from .distributed import Replicas

ControlFunction = GradientNorm | EpsilonGap | Callable[[StepStats], Tensor]


class Constraint:
    """g1 and f1, held between the constraint's backward pass and the step; and the control that will meet them."""

    def __init__(
        self,
        control: ControlFunction,
        max_norm: float | None,
        lambda_max: float | None,
        fused: bool | None,
        process_group: Replicas,
    ) -> None:
        for name, limit in (("max_norm", max_norm), ("lambda_max", lambda_max)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit!r} must be positive, or None for no limit")
        self.control, self.max_norm, self.lambda_max, self.fused = control, max_norm, lambda_max, fused
        self.process_group = distributed.checked(process_group)
        self.grads: list[Tensor | None] = []
        self.value: Tensor | None = None
        self.phases: TwoPhase | None = None

    def hold(self, value: Tensor, params: list[Tensor]) -> None:
        """Moves every ``p.grad`` to g1; a second call before the step adds to it, as gradient accumulation does."""
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                "hold_constraint: f1 must be a tensor with one element, the loss whose backward() you called"
            )
        grads = [p.grad for p in params]
        if distributed.initialised():
            grads = distributed.owned(grads)
        if self.value is None and not any(map(is_not, grads, repeat(None))):
            raise RuntimeError("hold_constraint: no parameter has a gradient; call f1.backward() first")
        for param in params:
            param.grad = None
        held = self.held(params)
        self.grads = grads if self.value is None else list(map(_added, held, grads))
        value = value.detach().reshape(())
        if not value.is_floating_point():
            value = value.double()
        self.value = value if self.value is None else self.value + value

    def held(self, params: list[Tensor]) -> list[Tensor | None]:
        """g1 of each parameter; those of a group added since it was held have none."""
        return self.grads + [None] * (len(params) - len(self.grads))

    def release(self) -> None:
        self.grads, self.value = [], None

    def run(self, rule: Rule, operands: Operands, hyper: list[list[float | Tensor]], device: torch.device) -> None:
        """Both phases of one step."""
        several, shards = distributed.initialised(), None
        if several and distributed.has_shards(operands):
            shards = distributed.Shards(operands, hyper, self.process_group)
            operands, hyper = shards.operands, shards.hyper
        phases = self._phases_on(device, len(hyper))
        self._write_hyper(hyper)
        self._write_control()
        if self.value is not None and self.value.device != phases.report.device:
            self.value = self.value.to(phases.report.device)
        if several and shards is None and self.value is not None:
            self.value = distributed.averaged(self.value, self.process_group)
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

    def _phases_on(self, device: torch.device, groups: int) -> TwoPhase:
        if self.phases is None or self.phases.device != device or len(self.phases.hyper) != groups:
            before, self.phases = self.phases, TwoPhase(device, groups, self.fused)
            if before is not None:
                self.phases.report.copy_(before.report)  # the count of skipped steps and the integral live on
            self._hyper_written = self._control_written = None
        return self.phases

    def _write_hyper(self, rows: list[list[float | Tensor]]) -> None:
        """To the device only what changed; only a learning rate may be a tensor, and it stays on the device."""
        hyper = self.phases.hyper
        plain = [[0.0 if isinstance(value, Tensor) else float(value) for value in row] for row in rows]
        if plain != self._hyper_written:
            hyper.copy_(torch.tensor(plain, dtype=hyper.dtype), non_blocking=True)
            self._hyper_written = plain
        for index, row in enumerate(rows):
            if isinstance(row[Hyper.LR], Tensor):
                hyper[index, Hyper.LR].copy_(row[Hyper.LR].detach().reshape(()))

    def _write_control(self) -> None:
        if self.value is None:
            coefficients = ops.UNCONSTRAINED
        elif hasattr(self.control, "coefficients"):
            coefficients = self.control.coefficients()
        else:
            coefficients = ops.GIVEN_PSI
        block = ops.control_block(coefficients, self.max_norm, self.lambda_max)
        if block != self._control_written:
            self.phases.control.copy_(torch.tensor(block, dtype=self.phases.control.dtype), non_blocking=True)
            self._control_written = block

    def _solve_with_callable(self, phases: TwoPhase) -> None:
        """ψ by the user's callable, which sees the sums of this step; solved for ψ = 0 first to name them."""
        report = phases.report.clone()
        phases.control[Control.GIVEN_PSI] = 0.0
        phases.solve()
        psi = self.control(self.stats())
        phases.report.copy_(report)
        phases.control[Control.GIVEN_PSI].copy_(torch.as_tensor(psi))
        phases.solve()


def _added(held: Tensor | None, grad: Tensor | None) -> Tensor | None:
    if held is None or grad is None:
        return grad if held is None else held
    return held.add_(grad)


class EpsilonOptimizer(Optimizer):
    """An optimizer whose every step solves: min ½‖g − d‖²_P s.t. ⟨g1, g⟩ ≥ ψ, over all parameter groups at once.

    Subclasses name the rule, a group's row of ``layout.Hyper`` values, and a parameter's state.
    """

    _rule: Rule

    def __init__(
        self,
        params: Iterable,
        defaults: dict,
        control: ControlFunction,
        max_norm: float | None,
        lambda_max: float | None,
        fused: bool | None,
        process_group: Replicas,
    ) -> None:
        self._constraint = Constraint(control, max_norm, lambda_max, fused, process_group)
        super().__init__(params, defaults)

    @property
    def control(self) -> ControlFunction:
        """The control function; its attributes may be changed between steps, or another one set."""
        return self._constraint.control

    @control.setter
    def control(self, control: ControlFunction) -> None:
        self._constraint.control = control

    @property
    def stats(self) -> StepStats:
        """What the last step saw and did; raises ``RuntimeError`` before the first."""
        return self._constraint.stats()

    @property
    def skipped_steps(self) -> Tensor:
        """How many steps wrote nothing because a value was not finite: 0-d tensor on the parameters' device."""
        if self._constraint.phases is None:
            return torch.zeros(())
        return self._constraint.phases.report[Report.SKIPPED_STEPS].clone()

    def hold_constraint(self, value: Tensor) -> None:
        """Takes every ``p.grad`` as ∇f1, without a copy, and leaves ``p.grad`` ``None`` for the objective.

        Call it after ``f1.backward()``. Further calls before ``step()`` add to what is held: scale each micro-batch's
        loss as for ordinary gradient accumulation. A step with no constraint held is the plain optimizer's.

        In several processes, call it where the gradients are already averaged or reduced: under ``no_sync`` once, after
        the last micro-batch's backward pass, with the sum of their f1. Every process hands in its own f1.

        Args:
            value: f1, one element; it is detached.

        Raises:
            ValueError: ``value`` is not a tensor with one element.
            RuntimeError: no parameter has a gradient.
        """
        self._constraint.hold(value, self._params())

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One constrained step. If any value of g1, g2 or f1 is not finite, nothing is written and the step is counted.

        Args:
            closure: re-evaluates the objective f2 and returns it.

        Returns:
            the closure's loss, if there is one.

        Raises:
            ValueError: a gradient's shape is not its parameter's.
            RuntimeError: sparse tensors, several devices, or ``fused=True`` where no kernel serves.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        operands = self._operands()
        if len(operands):
            hyper = [self._hyper(group) for group in self.param_groups]
            self._constraint.run(self._rule, operands, hyper, operands.params[0].device)
        return loss

    def _params(self) -> list[Tensor]:
        return list(chain.from_iterable(group["params"] for group in self.param_groups))

    def _operands(self) -> Operands:
        params = self._params()
        grads, held = [p.grad for p in params], self._constraint.held(params)
        counts = (repeat(index, len(group["params"])) for index, group in enumerate(self.param_groups))
        groups = list(chain.from_iterable(counts))
        if any(map(is_, grads, repeat(None))):  # those without any gradient take no part
            rows = [
                row for row in zip(params, grads, held, groups, strict=True) if row[1] is not None or row[2] is not None
            ]
            params, grads, held, groups = ([row[column] for row in rows] for column in range(4))
        states = self._state_of(params, groups)
        return Operands(params, grads, held, *states, groups)

    @abstractmethod
    def _hyper(self, group: dict) -> list[float | Tensor]:
        """The group's values, in the order of ``layout.Hyper``."""

    @abstractmethod
    def _state_of(self, params: list[Tensor], groups: list[int]) -> tuple[list[Tensor | None], ...]:
        """First moments, second moments and step counters of parameters, made when they are first asked for.

        Args:
            params: the parameters of this step.
            groups: the index of each one's group.
        """
