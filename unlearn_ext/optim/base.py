"""Base class of the optimizers: parameter groups, steps, state and checkpoints, as in torch.optim."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import chain, repeat
from operator import is_, is_not
from typing import Any, ClassVar, TypeAlias, TypeVar, overload

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from .._torch_internals import disable_dynamo, global_post_hooks, global_pre_hooks, profiler_enabled
from ..ops.layout import Operands, Rule
from . import _compiled, _distributed
from ._amp import refuse_unscaled, unscale_
from ._constraints import Constraints, Controls, key, named
from ._held import Held, HeldGradients

__all__ = ["KEPT", "EpsilonOptimizer", "States", "not_negative"]

T = TypeVar("T")
States: TypeAlias = tuple[Sequence[Tensor | None], Sequence[Tensor | None], Sequence[Tensor | None]]


def not_negative(owner: str, **options: float | Tensor) -> None:
    """Raise ``ValueError`` for the first option that is negative, or a tensor that has not exactly one element."""
    for name, value in options.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{owner}: {name} as a tensor must have one element, not shape {tuple(value.shape)}")
        if not value >= 0:
            raise ValueError(f"{owner}: {name}={value!r} must not be negative")


#: The key of every parameter group for the constraints' values that persist between steps.
KEPT = "constraint"


def _keep_adapted(optimizer: "EpsilonOptimizer", state_dict: dict[str, Any]) -> None:
    """Check a state dict and remember it for :meth:`EpsilonOptimizer.__setstate__`.

    This is the last pre-hook, so it sees the changes that the user's hooks made to the state dict.
    """
    for group in state_dict["param_groups"]:
        optimizer._check_loadable(group)
    optimizer._loading = state_dict


def upgraded(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's ``"constraint"`` in today's form.

    Before there were several constraints, it had an integral and averages that today's control cannot continue: it
    starts anew.
    """
    former = ("integral", "smoothed_steps", "smoothed_constraint")
    return {entry: value for entry, value in kept.items() if entry not in former}


def _as_saved(value: Tensor | float | None, device: torch.device) -> Tensor | None:
    """Copy a saved state to the parameter's device in its saved dtype.

    Checkpoints of older torch versions contain plain numbers, which become 0-d tensors, and ``None``, which is kept.
    """
    if value is None:
        return None
    tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
    return tensor.to(device, copy=True)


class EpsilonOptimizer(Optimizer):
    """An optimizer whose every step solves min ½‖g − d‖²_P s.t. ⟨∇c_i, g⟩ ≥ ψ_i, over all parameter groups at once.

    Subclasses define the rule, a group's row of ``layout.Hyper`` values, and a parameter's state.
    """

    _rule: Rule
    #: Options that checkpoints of older torch versions do not have, with the value that then applied.
    _former_options: ClassVar[dict[str, Any]] = {"maximize": False}

    def __init__(self, params: ParamsT, defaults: dict[str, Any], constraints: Constraints) -> None:
        constraints.held.under_zero = _distributed.made_by_zero()
        if constraints.held.under_zero and constraints.control is not None:
            _distributed.refuse_zero()
        self._constraints = constraints
        self._number = _compiled.register(self)
        self._loading: dict[str, Any] | None = None
        super().__init__(params, defaults)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``GradScaler`` leaves unscaling and skipping to ``step()``, which then does not synchronise.

        True only if ``GradScaler`` reads it. Lightning reads the same attribute as "a fused optimizer, whose gradients
        cannot be clipped", which is wrong here: ``step()`` also accepts gradients that are already unscaled.
        """
        return sys._getframe(1).f_globals.get("__name__") == GradScaler.__module__

    @staticmethod
    def profile_hook_step(func: Callable[..., T]) -> Callable[..., T]:
        """Wrap ``step()`` so that torch's own wrapper runs only if there is a hook, a profiler or a compiler.

        Otherwise torch's wrapper would take a tenth of the time of a step of 300 small tensors.
        """
        observed = Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: "EpsilonOptimizer", *args: Any, **kwargs: Any) -> T:
            hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            hooks = hooks or global_pre_hooks or global_post_hooks
            if hooks or torch.compiler.is_compiling() or profiler_enabled():
                return observed(self, *args, **kwargs)
            return func(self, *args, **kwargs)

        return step

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, as in torch.

        User code and frameworks may change the list, its dicts and their lists of parameters. Each step uses their
        current contents.
        """
        return self._groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        # Stored under another name, because torch.compile guards every number in an optimizer's param_groups.
        self._groups = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in torch; its parameters take part from the next step on."""
        super().add_param_group(param_group)
        self.param_groups[-1][KEPT] = self._constraints.kept

    @property
    def control(self) -> Controls:
        """The control function, or the dict of them by name.

        Between steps you may change a control's attributes, add and remove entries of the dict, or set another one.
        """
        return self._constraints.control

    @control.setter
    def control(self, control: Controls) -> None:
        self._constraints.control = control

    @property
    def stats(self) -> Any:
        """The values of the last step: :class:`~unlearn_ext.StepStats`, or a dict of them if ``control`` is a dict.

        Raises ``RuntimeError`` before the first step.
        """
        return self._constraints.stats()

    @property
    def skipped_steps(self) -> Tensor:
        """Number of steps that wrote nothing because a value was not finite: 0-d tensor on the parameters' device."""
        self._adopt()
        return self._constraints.kept["skipped_steps"].clone()

    @disable_dynamo  # it reads reference counts, which a compiler cannot trace
    def hold_constraint(self, value: Tensor, name: str | None = None, scaler: GradScaler | None = None) -> None:
        """Take every ``p.grad`` as ∇c of a constraint, and set ``p.grad`` to ``None`` for the objective.

        Call it after ``c.backward()``. Further calls for the same constraint before ``step()`` add to c and ∇c: scale
        each micro-batch's loss as for ordinary gradient accumulation. A constraint that is not held takes no part in
        the step; a step without any is an unconstrained step.

        The step uses c and ∇c as they are at this call: c is copied, and so is a gradient that other code may still
        write to (one that another object, view or buffer shares). A gradient that only ``p.grad`` refers to is not
        copied.

        The value need not be the loss that was differentiated: if the true quantity has no gradient (an accuracy, a
        count), pass the true value after ``backward()`` of a surrogate (a *proxy constraint*).

        In distributed training, call it when the gradients are already averaged or reduced: with ``no_sync`` once,
        after the last micro-batch's backward pass, with the sum of the values. Every process passes its local value.

        Args:
            value: c itself, unscaled, one element; it is detached.
            name: the constraint's key in ``control``; ``None`` if ``control`` is not a dict.
            scaler: the ``GradScaler`` that scaled c for its backward pass, if any. ∇c is unscaled here; if it
                overflowed, the step is skipped and the scaler lowers its scale.

        Raises:
            TypeError: ``name`` is not a string.
            ValueError: ``value`` is not a tensor with one element, or there is no constraint of that name.
            RuntimeError: no parameter has a gradient; the optimizer has no ``control``; ``p.grad`` still has the
                gradient that the last step used; ``scaler.unscale_`` was called before; or FSDP1 flattened the
                parameters.
        """
        if scaler is not None and scaler.is_enabled():
            refuse_unscaled(self, scaler)
        self._constraints.hold(value, name, self._params(), scaler)

    @contextmanager
    def constraint(
        self, name: str | None = None, scaler: GradScaler | None = None
    ) -> Iterator[Callable[[Tensor], None]]:
        """Hold a constraint whose backward passes alternate with those of the objective.

        Inside the block ``p.grad`` is ∇c as accumulated so far, and afterwards again what it was before. So
        micro-batches of a constraint and of the objective may alternate in gradient accumulation, and under ``no_sync``
        of DistributedDataParallel the last backward pass of each reduces its whole sum::

            with optimizer.constraint("name") as hold:
                c = constraint_loss(batch) / micro_batches
                c.backward()
                hold(c)

        If the block raises, the constraint and ``p.grad`` are as before it.

        Args:
            name: the constraint's key in ``control``; ``None`` if ``control`` is not a dict.
            scaler: the ``GradScaler`` that scales c for its backward pass, if any.

        Yields:
            A function to call with the value of c, once or several times, as :meth:`hold_constraint`: values add up.

        Raises:
            RuntimeError: the function was not called; otherwise as :meth:`hold_constraint`.
        """
        if scaler is not None and scaler.is_enabled():
            refuse_unscaled(self, scaler)
        with self._constraints.interleaved(name, self._params(), scaler) as hold:
            yield hold

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], T]) -> T: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], T] | None = None) -> T | None:
        """Take one constrained step; if a gradient or a value is not finite, write nothing and count a skipped step.

        Args:
            closure: re-evaluates the objective f2 and returns it.

        Returns:
            The closure's loss, if there is a closure.

        Raises:
            ValueError: a gradient's shape is not its parameter's.
            RuntimeError: sparse tensors, several devices, ``fused=True`` without a kernel for the tensors, or ∇c is
                held for a parameter that is no longer in any group.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not torch.compiler.is_compiling():
            self._step()
        elif _compiled.can_compile(self):
            _compiled.step(self, self._number)
        else:
            torch.compiler.disable(self._step)()
        return loss

    def _step(self) -> None:
        self._adopt()
        if not self._constraints.is_ready(len(self._groups)):
            self._forget_averages()
        operands = self._operands()
        if len(operands):
            self._unscale(operands.grads)
            hyper = [self._hyper(group) for group in self.param_groups]
            params: Sequence[Tensor] = operands.params  # type: ignore[assignment]  # only a projection has none
            self._constraints.run(self._rule, operands, hyper, params[0].device)

    def _write_values(self, hyper: Tensor, control: Tensor) -> None:
        """Write the current learning rates, ε and other numbers to the buffers of a compiled step."""
        self._constraints.write_values([self._hyper(group) for group in self.param_groups], hyper, control)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict, extended by the state of the constraints.

        Every group has ``"constraint"``, a dict of tensors that is the same for all groups: the count of skipped steps,
        what the control of each constraint remembers (``state``, or ``state.<name>``), and c of those that are held
        (``held``, ``held.<name>``). ``state[i]["constraint_grad"]`` is ∇c if it is held, ``state[i]["constraint_ema"]``
        its average; with names, ``constraint_grad.<name>`` and ``constraint_ema.<name>``.
        """
        with self._held_in_public():
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict as torch does, but keep each state's saved dtype, and restore the held c and ∇c.

        Raises:
            ValueError: the parameter groups do not match this optimizer's, or the state dict uses an option of the
                torch optimizer that is not supported here, such as ``amsgrad``. Nothing is loaded then.
        """
        handle = self.register_load_state_dict_pre_hook(  # after the user's hooks, which may adapt it
            _keep_adapted  # type: ignore[arg-type]  # it gets this optimizer
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def _check_loadable(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` for a saved group whose state has another meaning in this optimizer."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_constraints": self._constraints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self.param_groups = state.pop("param_groups")  # torch would write it to __dict__ and bypass the property
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # added by torch; otherwise only new groups would have it
        self._number = _compiled.register(self)
        for group in self.param_groups:
            for option, value in self._former_options.items():
                group.setdefault(option, value)
        saved = self.__dict__.setdefault("_loading", None)
        if saved is not None:  # here, so that the user's post-hooks come after it
            self._take_up(saved)
        for group in self.param_groups:
            group[KEPT] = self._constraints.kept

    def _take_up(self, saved: dict[str, Any]) -> None:
        """Load the state in its saved dtype, and the constraints' persistent and held values."""
        params = self._params()
        names = chain.from_iterable(group["params"] for group in saved["param_groups"])
        for name, param in zip(names, params, strict=True):
            if param in self.state:
                state = {key: _as_saved(value, param.device) for key, value in saved["state"].get(name, {}).items()}
                self.state[param] = {key: value for key, value in state.items() if value is not None}
        kept = self.param_groups[0].get(KEPT) if self.param_groups else None
        if not kept:  # a checkpoint of the torch optimizer has none
            return
        kept = upgraded(kept)
        held = HeldGradients()
        for entry, value in kept.items():
            prefix, _, name = entry.partition(".")
            if prefix == "held":
                states = [self.state.get(param, {}) for param in params]
                grads = [state.pop(key("constraint_grad", name), None) for state in states]
                held.by_name[name] = Held(value, params, grads)
        self._constraints.remember(kept, held)

    def __repr__(self) -> str:
        return f"{super().__repr__()}\ncontrol: {self.control!r}"

    def _adopt(self) -> None:
        """Use the constraints' persistent values from the first parameter group.

        They may have been replaced since the last step: ``torch.optim.swap_in_optimizer_params_and_state``, for
        example, replaces the contents of the groups inside a ``with`` block.
        """
        if self._groups:
            self._constraints.adopt(self._groups[0].get(KEPT))

    @contextmanager
    def _held_in_public(self) -> Iterator[None]:
        """Add every c and ∇c that is held to the groups and states inside a ``with`` block.

        ``torch.optim.Optimizer.state_dict`` reads them there.
        """
        self._adopt()
        constraints = self._constraints
        before: dict[Tensor, dict[str, Any] | None] = {}
        kept = {**constraints.kept, **{key("held", n): held.value for n, held in constraints.held.by_name.items()}}
        for group in self.param_groups:
            group[KEPT] = kept
        for name, held in constraints.held.by_name.items():
            for param, grad in zip(held.params, held.grads, strict=True):
                if grad is not None:
                    before.setdefault(param, self.state.get(param))
                    self.state[param] = {**self.state.get(param, {}), key("constraint_grad", name): grad}
        try:
            yield
        finally:
            for group in self.param_groups:
                group[KEPT] = constraints.kept
            for param, state in before.items():
                self.state.pop(param) if state is None else self.state.update({param: state})

    def _unscale(self, grads: Sequence[Tensor | None]) -> None:
        """Unscale ∇f2 if ``GradScaler.step`` left that to the optimizer by setting ``grad_scale``."""
        if not hasattr(self, "grad_scale"):
            return
        if not all(held.scaled for held in self._constraints.held.by_name.values()):
            raise RuntimeError(
                "step: the objective was scaled by a GradScaler but a constraint was held without it; scale the "
                "constraint as well and call hold_constraint(value, scaler=scaler)"
            )
        if self.grad_scale is not None:
            unscale_(grads, self.grad_scale)

    def _averages(self, name: str, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the moving averages of a constraint's ∇c, created as zeros; Nones if it is not averaged."""
        if self._constraints.grad_decay == 0:
            return [None] * len(params)
        states, entry, dtype = self._states(params), key("constraint_ema", name), self._constraints.held.dtype
        for param, state in zip(params, states, strict=True):
            if entry not in state:
                state[entry] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
        return [state[entry] for state in states]

    def _forget_averages(self) -> None:
        """Drop the averages of constraints that ``control`` no longer has; one of that name later is a new one."""
        present = {key("constraint_ema", name) for name in named(self.control)}
        for state in self.state.values():
            for entry in [e for e in state if e.partition(".")[0] == "constraint_ema" and e not in present]:
                del state[entry]

    def _params(self) -> list[Tensor]:
        return list(chain.from_iterable([group["params"] for group in self._groups]))

    def _states(self, params: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the state of each parameter.

        Skips the lookups if ``self.state`` is in the order of ``params``: looking up a tensor is slow.
        """
        ordered = not torch.compiler.is_compiling() and len(self.state) == len(params)
        if ordered and all(map(is_, self.state, params)):
            return list(self.state.values())
        return [self.state[param] for param in params]

    def _operands(self) -> Operands:
        params, names = self._params(), self._constraints.held.names
        grads, held = [p.grad for p in params], [self._constraints.held.of(name, params) for name in names]
        sizes = [len(group["params"]) for group in self._groups]
        groups = list(chain.from_iterable(repeat(index, size) for index, size in enumerate(sizes)))
        if [grad for grad in grads if grad is None]:  # drop rows without gradients; any() would take twice as long
            rows = [i for i, row in enumerate(zip(grads, *held, strict=True)) if any(map(is_not, row, repeat(None)))]
            params, grads, groups = [params[i] for i in rows], [grads[i] for i in rows], [groups[i] for i in rows]
            held = [[column[i] for i in rows] for column in held]
        firsts, seconds, steps = self._state_of(params, groups)
        # Also for constraints that are not held: torch loads a checkpoint into the state of a step that holds nothing.
        every = {name: self._averages(name, params) for name in (*named(self.control), *names)}
        averages = [every[name] for name in names]
        return Operands(params, grads, firsts, seconds, steps, groups, held, averages)

    @abstractmethod
    def _hyper(self, group: dict[str, Any]) -> list[float | Tensor]:
        """Return the group's values, in the order of ``layout.Hyper``."""

    @abstractmethod
    def _state_of(self, params: list[Tensor], groups: list[int]) -> States:
        """Return first moments, second moments and step counters of the parameters; create missing ones.

        Args:
            params: the parameters of this step.
            groups: index of each parameter's group.
        """
