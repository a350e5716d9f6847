"""Constrained SGD, with the metric P = I."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..ops.layout import Rule
from ._constraints import Constraints, Controls
from ._distributed import Replicas
from .base import EpsilonOptimizer, States, not_negative

__all__ = ["EpsilonSGD"]


class EpsilonSGD(EpsilonOptimizer):
    """``torch.optim.SGD`` whose step satisfies ⟨∇f1, g⟩ ≥ ψ; g = d + λ∇f1 with d the momentum buffer of ∇f2.

    As in torch's SGD, weight decay is part of d, so the guarantee covers it. A step without a held constraint equals
    that of ``torch.optim.SGD`` up to rounding. Source: Feng et al., ICLR 2025, eq. 5–6; Gong, Liu, Liu, NeurIPS 2021.

    Args:
        params: parameters or groups; float32, bfloat16 or float16 for the kernels, any real dtype for the reference.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in ``torch.optim.SGD``; ``lr`` may be a tensor.
            ``maximize`` applies only to the objective f2.
        control: ψ: :class:`~unlearn_ext.EpsilonGap`, :class:`~unlearn_ext.GradientNorm`, or a callable
            ``(StepStats) -> 0-d tensor``. ``None``: no constraint can be held until ``optimizer.control`` is set.
        max_norm: upper limit of the global norm of g; a clipped step may fall short of ψ.
        lambda_max: upper limit of λ; a limited step may fall short of ψ.
        fused: ``None``: kernels if they support the tensors; ``True``: kernels or an error; ``False``: the reference.
        constraint_grad_ema: decay of the moving average of every ∇c that replaces it in the step; 0: no averaging.
            ``None``: each constraint's measured noise decides, from none without noise to about 50 steps.
        process_group: the processes that have replicas of plain parameters, over which f1 is averaged. ``"default"``:
            all, once ``torch.distributed`` is initialised. ``None``: no averaging, for independent optimizers. DTensor
            parameters bring their own process groups.
        held_dtype: dtype in which ∇c is held until the step, and in which its average is kept, such as
            ``torch.bfloat16`` to save memory; ``None``: that of the gradients.

    Raises:
        ValueError: an argument is out of range, or this process is not a member of ``process_group``.
    """

    _rule = Rule.SGD
    _former_options: ClassVar[dict[str, Any]] = {"maximize": False, "nesterov": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        control: Controls = None,
        maximize: bool = False,
        max_norm: float | None = None,
        lambda_max: float | None = None,
        fused: bool | None = None,
        constraint_grad_ema: float | None = None,
        process_group: Replicas = "default",
        held_dtype: torch.dtype | None = None,
    ) -> None:
        not_negative("EpsilonSGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("EpsilonSGD: nesterov needs a momentum and no dampening")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        constraints = Constraints(control, max_norm, lambda_max, fused, constraint_grad_ema, process_group, held_dtype)
        super().__init__(params, defaults, constraints)

    def _hyper(self, group: dict[str, Any]) -> list[float | Tensor]:
        return [
            group["lr"],
            group["momentum"],
            group["dampening"],
            0.0,
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            0.0,
        ]

    def _has_momentum(self) -> list[bool]:
        return [group["momentum"] != 0 for group in self.param_groups]

    def _step(self) -> None:
        self._keeps = self._has_momentum()
        super()._step()

    def _write_values(self, hyper: Tensor, control: Tensor) -> None:
        if self._keeps != self._has_momentum():
            raise RuntimeError(
                "step: momentum was turned on or off since the last step that was not compiled, and a compiled one "
                "cannot make or drop its buffers; take one step outside of torch.compile"
            )
        super()._write_values(hyper, control)

    def _state_of(self, params: list[Tensor], groups: list[int]) -> States:
        none = [None] * len(params)
        if not any(self._keeps):
            return none, none, none
        if all(self._keeps):
            states = self._states(params)
        else:
            states = [self.state[p] if self._keeps[g] else {} for p, g in zip(params, groups, strict=True)]
        for param, group, state in zip(params, groups, states, strict=True):
            if self._keeps[group] and "momentum_buffer" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
                state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return [s.get("momentum_buffer") for s in states], none, [s.get("step") for s in states]
