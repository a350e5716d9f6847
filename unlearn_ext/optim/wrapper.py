"""A wrapper that makes the step of any torch optimizer satisfy constraints."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..ops.layout import Rule
from ._constraints import Constraints, Controls, named
from ._distributed import Replicas
from .base import KEPT, EpsilonOptimizer, States, not_negative

__all__ = ["EpsilonWrapper"]

T = TypeVar("T")

_OWN = ("epsilon_", "constraint_")  # how the keys begin of what the wrapper adds to a parameter's state


class EpsilonWrapper(EpsilonOptimizer):
    """Any torch optimizer, whose step Δ = θ_before − θ becomes the nearest one that satisfies ⟨∇c_i, Δ'⟩ ≥ Ψ_i.

    The wrapped optimizer proposes Δ for the gradient of the Lagrangian, ∇f2 + Σ λ̂_i∇c_i, where λ̂ is the running mean of
    the multipliers λ of earlier steps; then Δ' = Δ + μs Σ (λ_i − λ̂_i) P⁻¹∇c_i, with the learning rate μ,
    P = diag(√(v̂ + w·Σ∇c_i²) + eps), v the moving average of that gradient's square, and s the length of Δ/μ relative to
    P⁻¹ times that gradient. A run comes to rest where λ = λ̂ and Δ = 0, at a stationary point of the Lagrangian,
    whatever the wrapped optimizer's metric is. The step is projected, not the gradient: an optimizer that rescales a
    projected gradient, as Adam does, misses ε by 20 to 60 %.

    A step without a held constraint is exactly that of the wrapped optimizer, and so is one where λ and λ̂ are zero.

    Parameter groups, their options and the schedulers are those of the wrapped optimizer: both objects have the same
    ``param_groups``. A state dict has the state of both; a state dict of the wrapped optimizer alone loads too. Hold
    constraints with, and call ``zero_grad`` and ``step`` of, the wrapper. For SGD and AdamW,
    :class:`~unlearn_ext.EpsilonSGD` and :class:`~unlearn_ext.EpsilonAdamW` are faster and need less memory: the wrapper
    needs v, and during a step a copy of the parameters.

    Args:
        optimizer: the optimizer that proposes the step, such as ``torch.optim.Muon``.
        control: as in :class:`~unlearn_ext.EpsilonAdamW`.
        beta2: decay of v.
        eps: added to the square root in P.
        constraint_weight: w, the share of ∇c in the metric.
        lambda_max, fused, constraint_grad_ema, process_group, held_dtype: as in :class:`~unlearn_ext.EpsilonAdamW`.

    Attributes:
        optimizer: the wrapped optimizer.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer, or has constraints of its own.
        ValueError: an argument is out of range.
    """

    _rule = Rule.WRAP

    def __init__(
        self,
        optimizer: Optimizer,
        control: Controls = None,
        *,
        beta2: float = 0.999,
        eps: float = 1e-8,
        constraint_weight: float = 1e-3,
        lambda_max: float | None = None,
        fused: bool | None = None,
        constraint_grad_ema: float | None = None,
        process_group: Replicas = "default",
        held_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, EpsilonOptimizer):
            raise TypeError(
                f"EpsilonWrapper: wrap a torch.optim.Optimizer without constraints, not a {type(optimizer).__name__}"
            )
        not_negative("EpsilonWrapper", eps=eps, constraint_weight=constraint_weight)
        if not 0 <= beta2 < 1:
            raise ValueError(f"EpsilonWrapper: beta2={beta2!r} must lie in [0, 1)")
        self._metric = beta2, eps, constraint_weight
        constraints = Constraints(control, None, lambda_max, fused, constraint_grad_ema, process_group, held_dtype)
        super().__init__(optimizer.param_groups, dict(optimizer.defaults), constraints)
        self.optimizer = optimizer
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = self.optimizer.param_groups
        for group in self.param_groups:
            group[KEPT] = self._constraints.kept

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimizer, as in torch."""
        if "optimizer" not in vars(self):  # torch's constructor adds the groups that the wrapped optimizer has already
            super().add_param_group(param_group)
            return
        self.optimizer.add_param_group(param_group)
        self._share_groups()

    @torch.no_grad()
    def step(self, closure: Callable[[], T] | None = None) -> T | None:  # type: ignore[override]  # no overloads needed
        """Take a step of the wrapped optimizer and correct it; λ̂∇c is added to ``p.grad`` in place.

        If a gradient or a value is not finite, the parameters stay as they were and a skipped step is counted; the
        wrapped optimizer's own state has seen the gradient of the objective.

        Args:
            closure: passed to the wrapped optimizer; it may hold constraints.

        Returns:
            What the wrapped optimizer returns.

        Raises:
            ValueError: a gradient's shape is not its parameter's.
            RuntimeError: as for :meth:`EpsilonSGD.step`.
        """
        if torch.compiler.is_compiling():
            loss: T | None = torch.compiler.disable(self._wrapped_step)(closure)
            return loss
        return self._wrapped_step(closure)

    def _wrapped_step(self, closure: Callable[[], T] | None) -> T | None:
        super()._unscale([param.grad for param in self._params()])
        overflow = bool(getattr(self, "found_inf", False))  # set by GradScaler; it reads it too for torch's optimizers
        held = self._constraints.held
        if closure is None and not overflow and not held.names:
            loss = self._proposed(closure)
            self._prepare()
            return loss
        self._before = {param: param.detach().clone() for param in self._params()}
        try:
            loss = None if overflow else self._proposed(closure)
            if overflow or held.names:  # the closure may have held it, as in Lightning's automatic optimization
                self._step()  # after an overflow it counts the skipped step and drops what was held
            else:
                self._prepare()
        finally:
            self._before = {}
        return loss

    def _unscale(self, grads: Sequence[Tensor | None]) -> None:
        """Do nothing, since the gradients were unscaled for the wrapped optimizer."""

    def _proposed(self, closure: Callable[[], T] | None) -> T | None:
        """Take the wrapped optimizer's step for the gradient of the Lagrangian."""
        if closure is None:
            self._add_carried()
            return self.optimizer.step()

        def lagrangian() -> T:
            loss = closure()
            self._add_carried()
            return loss

        return self.optimizer.step(lagrangian)  # type: ignore[arg-type, return-value]  # torch types it for floats

    @torch.no_grad()
    def _add_carried(self) -> None:
        """Add λ̂∇c of every held constraint to ``p.grad``; an element that is not finite counts as zero.

        The step is skipped then, and the wrapped optimizer's state stays finite.
        """
        self._adopt()
        params, held = self._params(), self._constraints.held
        for name in held.names:
            carried = self._constraints.carried(name)
            if carried is None:  # its first step
                continue
            for param, grad in zip(params, held.of(name, params), strict=True):
                if grad is None:
                    continue
                share = torch.nan_to_num(grad * carried, 0.0, 0.0, 0.0).to(param.dtype)
                param.grad = share if param.grad is None else param.grad.add_(share)

    def _hyper(self, group: dict[str, Any]) -> list[float | Tensor]:
        beta2, eps, weight = self._metric
        lr = group.get("lr")
        return [1.0 if lr is None else lr, 0.0, beta2, eps, 0.0, False, False, weight]

    def _state_of(self, params: list[Tensor], groups: list[int]) -> States:
        self._create_states(params)
        states = self._states(params)
        before: list[Tensor | None] = [self._before[param] for param in params]
        return before, [s["epsilon_avg_sq"] for s in states], [s["epsilon_step"] for s in states]

    def _prepare(self) -> None:
        """Create what a constrained step creates.

        torch.distributed.checkpoint loads only what exists after a step that holds nothing, which it takes itself.
        """
        params = [param for param in self._params() if param.grad is not None]
        if params:
            self._adopt()
            self._create_states(params)
            self._constraints.prepare(params[0].device, len(self._groups))

    def _create_states(self, params: list[Tensor]) -> None:
        for param, state in zip(params, self._states(params), strict=True):
            if "epsilon_avg_sq" not in state:
                state["epsilon_step"] = torch.zeros((), dtype=torch.float32, device=param.device)
                state["epsilon_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        for name in named(self.control):
            self._averages(name, params)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state dict, extended by the wrapper's state and that of the constraints."""
        own = super().state_dict()
        with self._held_in_public():
            wrapped = self.optimizer.state_dict()
        for index, state in own["state"].items():
            wrapped["state"][index] = {**wrapped["state"].get(index, {}), **state}
        return wrapped

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of :meth:`state_dict`, or of the wrapped optimizer alone.

        Raises:
            ValueError: the parameter groups do not match. Nothing is loaded then.
        """
        own, wrapped = dict(state_dict), dict(state_dict)
        own["state"] = {index: _part(state, own=True) for index, state in state_dict["state"].items()}
        wrapped["state"] = {index: _part(state, own=False) for index, state in state_dict["state"].items()}
        super().load_state_dict(own)
        self.optimizer.load_state_dict(wrapped)
        self._share_groups()
        self._create_states([param for param in self._params() if param in self.optimizer.state])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizer": self.optimizer, "_metric": self._metric}

    def __repr__(self) -> str:
        return f"EpsilonWrapper of {self.optimizer!r}\ncontrol: {self.control!r}"


def _part(state: dict[str, Any], own: bool) -> dict[str, Any]:
    """Return what is the wrapper's, or what is the wrapped optimizer's, of a parameter's state."""
    return {key: value for key, value in state.items() if key.startswith(_OWN) == own}
