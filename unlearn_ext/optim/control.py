"""Control functions ψ(θ): how hard a step must push the constraint f1 down. ψ has the units of f1 per learning rate.

A control is one of the two below, or any callable ``(StepStats) -> 0-d tensor``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import NamedTuple, TypeVar

from torch import Tensor

from ..ops.layout import Kind

__all__ = ["EpsilonGap", "GradientNorm", "StepStats"]

T = TypeVar("T")


class StepStats(NamedTuple):
    """What a step saw and did: 0-d tensors on the parameters' device. Reading one is the only sync.

    With several learning rates μ_k, ``dot`` is Σ μ_k⟨g1,d⟩_k / μ with the μ that also turns ψ into a decrease of f1.
    """

    constraint: Tensor  #: f1, as handed to ``hold_constraint``; of several processes, their mean
    psi: Tensor  #: ψ, the required ⟨g1, g⟩
    lam: Tensor  #: λ ≥ 0; zero where d satisfies the constraint. With momentum β, 1/(1 − β) times the multiplier
    dot: Tensor  #: ⟨g1, d⟩
    sq_constraint: Tensor  #: ⟨g1, P⁻¹g1⟩
    sq_direction: Tensor  #: ‖d‖²_P
    scale: Tensor  #: factor of the global-norm clipping, 1 where nothing was clipped
    skipped: Tensor  #: bool, set where a value was not finite and nothing was written


@dataclass
class GradientNorm:
    """ψ = α‖g1‖^δ in the metric P⁻¹: drives f1 to its infimum without knowing it.

    Source: Feng et al., ICLR 2025, Phase I, where δ = 2 is the fastest.

    Args:
        alpha: α > 0, the share of the gradient step on f1 that must be taken (δ = 2).
        delta: δ ≥ 0.
        cap: β of the dynamic barrier's cap ψ ≤ β‖g1‖² (Gong, Liu, Liu, NeurIPS 2021); ``None``: uncapped.
    """

    alpha: float = 1.0
    delta: float = 2.0
    cap: float | None = None

    def coefficients(self) -> tuple[float | Tensor, ...]:
        """The entries KIND … CAP of the control block; raises ``ValueError`` on values that have no meaning."""
        _check("alpha", self.alpha, lambda alpha: alpha > 0)
        _check("delta", self.delta, lambda delta: delta >= 0)
        return (float(Kind.GRADIENT_NORM), 0.0, self.alpha, 0.0, self.delta, 0.0, _cap(self.cap))


@dataclass
class EpsilonGap:
    """ψ = α·sign(f1 − ε)·|f1 − ε|^δ: settles f1 at ε (Feng et al., ICLR 2025, Phase II; δ = 1, α = 1 is eq. 6).

    Where ∇f1 is noisy, f1 settles beside ε unless the optimizer averages it (``constraint_grad_ema``).

    One step of learning rate μ changes f1 by about −μψ, so by default α = rate/μ: the gap shrinks by ``rate`` a step
    whatever the learning rate. Below ε, ψ < 0: the step may give forgetting back.

    Args:
        epsilon: ε, in f1's units. May be changed between steps. ε, ``rate`` and ``alpha`` may be 0-d tensors
            on the parameters' device, which are read by every step, also by one replayed from a CUDA graph.
        rate: share of the gap closed by a step, 0 < rate ≤ 1. Ignored where ``alpha`` is given.
        delta: δ > 0; the sign survives every δ.
        alpha: α > 0, in place of rate/μ.
        integral: k ≥ 0. ψ also carries k·Σ(f1 − ε), summed while |f1 − ε| ≤ |ε|/2 and held within ±|ε|/k (anti-windup).
            It removes the offset that gradient noise or curvature leaves.
        cap: β of the dynamic barrier's cap ψ ≤ β‖g1‖² (Gong, Liu, Liu, NeurIPS 2021); ``None``: uncapped. Where no
            parameters reach ε, steps without a cap grow, and f1 itself may rise.
    """

    epsilon: float | Tensor
    rate: float | Tensor = 0.1
    delta: float = 1.0
    alpha: float | Tensor | None = None
    integral: float = 0.0
    cap: float | None = None

    def coefficients(self) -> tuple[float | Tensor, ...]:
        """The entries KIND … CAP of the control block; raises ``ValueError`` on values that have no meaning."""
        _check("epsilon", self.epsilon, isfinite)
        _check("rate", self.rate, lambda rate: 0 < rate <= 1)
        _check("delta", self.delta, lambda delta: delta > 0)
        _check("alpha", self.alpha, lambda alpha: alpha is None or alpha > 0)
        _check("integral", self.integral, lambda k: k >= 0)
        alpha = nan if self.alpha is None else self.alpha
        return (float(Kind.EPSILON_GAP), self.epsilon, alpha, self.rate, self.delta, self.integral, _cap(self.cap))


def _check(name: str, value: T | Tensor, good: Callable[[T], bool]) -> None:
    if not isinstance(value, Tensor) and not good(value):  # a tensor's value would have to be waited for
        raise ValueError(f"control: {name}={value!r} is out of range; see the docstring of the control function")


def _cap(cap: float | None) -> float:
    _check("cap", cap, lambda cap: cap is None or cap > 0)
    return inf if cap is None else cap
