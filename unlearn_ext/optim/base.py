"""What the optimizers share, as torch.optim has it: groups, steps, state, checkpoints."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import chain, repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ..control import StepStats
from ..layout import Report, Rule
from ..reference import Operands
from . import compiled
from .amp import unscale_
from .constraint import Constraint, ControlFunction


def not_negative(owner: str, **options: float | Tensor) -> None:
    """Raises ``ValueError`` for the first option that is negative, or a tensor of more than one element."""
    for name, value in options.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{owner}: {name} as a tensor must have one element, not shape {tuple(value.shape)}")
        if not value >= 0:
            raise ValueError(f"{owner}: {name}={value!r} must not be negative")


def _kept(value: Tensor | float | None, device: torch.device) -> Tensor | None:
    """A state as it was saved, on the parameter's device; checkpoints of old torch hold plain numbers and ``None``."""
    if value is None:
        return None
    tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
    return tensor.to(device, copy=True)


class EpsilonOptimizer(Optimizer):
    """An optimizer whose every step solves: min ½‖g − d‖²_P s.t. ⟨g1, g⟩ ≥ ψ, over all parameter groups at once.

    Subclasses name the rule, a group's row of ``layout.Hyper`` values, and a parameter's state.
    """

    _rule: Rule
    _step_supports_amp_scaling = True  # GradScaler leaves unscaling and skipping to step(), and does not wait for it

    def __init__(self, params: Iterable, defaults: dict, constraint: Constraint) -> None:
        self._constraint = constraint
        self._number = compiled.register(self)
        self._lists: list[list[Tensor]] = []
        super().__init__(params, defaults)

    @staticmethod
    def profile_hook_step(func: Callable) -> Callable:
        """Torch's wrapper of ``step()``, where a hook is to be run or a profiler to be told.

        Where neither is, it would take a tenth of a step of 300 small tensors.
        """
        observed = Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: "EpsilonOptimizer", *args: Any, **kwargs: Any) -> Any:
            hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            hooks = hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
            if hooks or torch.compiler.is_compiling() or torch.autograd._profiler_enabled():
                return observed(self, *args, **kwargs)
            return func(self, *args, **kwargs)

        return step

    def add_param_group(self, param_group: dict) -> None:
        super().add_param_group(param_group)
        # Apart from the groups: compiled code that read those would be guarded by every number in them.
        self._lists.append(self.param_groups[-1]["params"])

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
        """Number of steps that wrote nothing because a value was not finite. 0-d tensor on the parameters' device."""
        return self._constraint.report[Report.SKIPPED_STEPS].clone()

    def hold_constraint(self, value: Tensor, scaler: GradScaler | None = None) -> None:
        """Takes every ``p.grad`` as ∇f1, without a copy, and leaves ``p.grad`` ``None`` for the objective.

        Call it after ``f1.backward()``. Further calls before ``step()`` add to what is held: scale each micro-batch's
        loss as for ordinary gradient accumulation. A step with no constraint held is the plain optimizer's.

        In several processes, call it where the gradients are already averaged or reduced: under ``no_sync`` once, after
        the last micro-batch's backward pass, with the sum of their f1. Every process hands in its own f1.

        Args:
            value: f1 itself, unscaled, one element; it is detached.
            scaler: the ``GradScaler`` that scaled f1 for its backward pass, if one did. ∇f1 is unscaled here; where it
                overflowed, the step is skipped and the scaler backs off.

        Raises:
            ValueError: ``value`` is not a tensor with one element.
            RuntimeError: no parameter has a gradient.
        """
        self._constraint.hold(value, self._params(), scaler)

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
        if not torch.compiler.is_compiling():
            self._step()
        elif compiled.can_compile(self):
            compiled.step(self, self._number)
        else:
            torch.compiler.disable(self._step)()
        return loss

    def _step(self) -> None:
        operands = self._operands()
        if len(operands):
            self._unscale(operands.grads)
            hyper = [self._hyper(group) for group in self.param_groups]
            device = operands.params[0].device
            self._constraint.run(self._rule, operands, hyper, device, self._averages(operands.params))

    def write_values(self, constrained: bool, hyper: Tensor, control: Tensor) -> None:
        """The numbers of a step as they are now, for a compiled one."""
        self._constraint.write_values([self._hyper(group) for group in self.param_groups], constrained, hyper, control)

    def state_dict(self) -> dict:
        """As torch's, with what is held: ``state[i]["constraint_grad"]`` and, in the first group, ``constraint``."""
        saved = super().state_dict()
        for index, grad in enumerate(self._constraint.grads):
            if grad is not None:
                saved["state"][index] = {**saved["state"].get(index, {}), "constraint_grad": grad}
        saved["param_groups"][0]["constraint"] = self._constraint.memory()
        return saved

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but a state keeps the dtype that it was saved in, and what was held is held again."""
        super().load_state_dict(state_dict)
        params = self._params()
        names = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for name, param in zip(names, params, strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                self.state[param][key] = _kept(value, param.device)
            if param in self.state:
                self.state[param] = {key: value for key, value in self.state[param].items() if value is not None}
        held = [self.state[p].pop("constraint_grad", None) if p in self.state else None for p in params]
        if memory := self.param_groups[0].pop("constraint", None):  # a checkpoint of torch's namesake has none
            self._constraint.remember(memory, held)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_constraint": self._constraint}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._number = compiled.register(self)
        self._lists = [group["params"] for group in self.param_groups]

    def __repr__(self) -> str:
        return f"{super().__repr__()}\ncontrol: {self.control!r}"

    def _unscale(self, grads: list[Tensor | None]) -> None:
        """What ``GradScaler.step`` left to do: it sets ``grad_scale`` unless ∇f2 was unscaled before."""
        if not hasattr(self, "grad_scale"):
            return
        if self._constraint.value is not None and not self._constraint.scaled:
            raise RuntimeError(
                "step: ∇f2 was scaled by a GradScaler but ∇f1 was held without it; scale f1 as well and call "
                "hold_constraint(f1, scaler)"
            )
        if self.grad_scale is not None:
            unscale_(grads, self.grad_scale)

    def _averages(self, params: list[Tensor]) -> list[Tensor] | None:
        """Of g1, where it is smoothed; zeros where they are first asked for."""
        if not self._constraint.smoothing.grad_decay:
            return None
        states = self._states(params)
        for param, state in zip(params, states, strict=True):
            if "constraint_ema" not in state:
                state["constraint_ema"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return [state["constraint_ema"] for state in states]

    def _params(self) -> list[Tensor]:
        return list(chain.from_iterable(self._lists))

    def _states(self, params: list[Tensor]) -> list[dict]:
        """The state of each parameter; as they lie where that is in the same order, for a tensor is dear to look up."""
        ordered = not torch.compiler.is_compiling() and len(self.state) == len(params)
        if ordered and all(map(is_, self.state, params)):
            return list(self.state.values())
        return [self.state[param] for param in params]

    def _operands(self) -> Operands:
        params = self._params()
        grads, held = [p.grad for p in params], self._constraint.held(params)
        groups = list(chain.from_iterable(repeat(index, len(mine)) for index, mine in enumerate(self._lists)))
        if [grad for grad in grads if grad is None]:  # those without any take no part; any() would cost twice as much
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
