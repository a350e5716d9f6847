"""Constrained AdamW, with the metric P = diag(√v̂ + eps)."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..ops.layout import Rule
from ._constraints import Constraints, Controls
from ._distributed import Replicas
from .base import EpsilonOptimizer, States, not_negative

__all__ = ["EpsilonAdamW"]


class EpsilonAdamW(EpsilonOptimizer):
    """``torch.optim.AdamW`` whose step satisfies ⟨∇f1, g⟩ ≥ ψ, solved in Adam's metric P = diag(√v̂ + eps).

    g = d + λP⁻¹∇f1 with d = P⁻¹m̂ + weight_decay·θ, m the moving average of ∇f2 and v that of w∇f1² + ∇f2². If the
    projection came before Adam instead, Adam's rescaling would undo it. A step without a held constraint equals that of
    ``torch.optim.AdamW`` up to rounding. Source: Feng et al., ICLR 2025, eq. 5–6, in the metric P.

    Args:
        params: parameters or groups; float32, bfloat16 or float16 for the kernels, any real dtype for the reference.
        lr, betas, eps, weight_decay, maximize: as in ``torch.optim.AdamW``; ``lr`` may be a tensor. ``maximize``
            applies only to the objective f2.
        control: ψ: :class:`~unlearn_ext.EpsilonGap`, :class:`~unlearn_ext.GradientNorm`, or a callable
            ``(StepStats) -> 0-d tensor``. ``None``: no constraint can be held until ``optimizer.control`` is set.
        constraint_weight: w ≥ 0. If ∇f1 is much larger than ∇f2, it dominates the metric and f2 falls slowly; a smaller
            w prevents that. Multiplying f1 by √w has the same effect on the metric.
        max_norm: upper limit of ‖g‖_P; larger steps are clipped, and a clipped step may fall short of ψ.
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

    _rule = Rule.ADAMW

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        control: Controls = None,
        constraint_weight: float = 1.0,
        maximize: bool = False,
        max_norm: float | None = None,
        lambda_max: float | None = None,
        fused: bool | None = None,
        constraint_grad_ema: float | None = None,
        process_group: Replicas = "default",
        held_dtype: torch.dtype | None = None,
    ) -> None:
        not_negative("EpsilonAdamW", lr=lr, eps=eps, weight_decay=weight_decay, constraint_weight=constraint_weight)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"EpsilonAdamW: betas={betas!r} must be two numbers in [0, 1)")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "constraint_weight": constraint_weight,
        }
        constraints = Constraints(control, max_norm, lambda_max, fused, constraint_grad_ema, process_group, held_dtype)
        super().__init__(params, defaults, constraints)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a checkpoint of torch.optim.AdamW has none
            group.setdefault("constraint_weight", self.defaults["constraint_weight"])

    def _check_loadable(self, group: dict[str, Any]) -> None:
        coupled = group.get("weight_decay") and not group.get("decoupled_weight_decay", True)
        if group.get("amsgrad") or coupled:
            option = "amsgrad=True" if group.get("amsgrad") else "weight decay that is part of the gradient"
            raise ValueError(
                f"load_state_dict: the state was made with {option}, which EpsilonAdamW does not have; load the state "
                "of a torch.optim.AdamW without it"
            )

    def _hyper(self, group: dict[str, Any]) -> list[float | Tensor]:
        return [
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            False,
            group["maximize"],
            group["constraint_weight"],
        ]

    def _state_of(self, params: list[Tensor], groups: list[int]) -> States:
        states = self._states(params)
        for param, state in zip(params, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
                state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [s["step"] for s in states]
