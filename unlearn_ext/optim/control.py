"""Control functions ψ(θ): the required decrease of f1 per unit of learning rate, in units of f1.

A control is one of the two classes below, or any callable ``(StepStats) -> 0-d tensor``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import NamedTuple, TypeVar

from torch import Tensor

from ..ops.layout import Kind

__all__ = ["EpsilonGap", "GradientNorm", "StepStats"]

T = TypeVar("T")


class StepStats(NamedTuple):
    """The values of one step, as 0-d tensors on the parameters' device; reading one synchronises.

    With several learning rates μ_k, ``dot`` is Σ μ_k⟨∇c,d⟩_k / μ with the μ that also turns ψ into a decrease of c. If
    ∇c is averaged, the average takes its place in all of them.
    """

    constraint: Tensor  #: c as passed to ``hold_constraint``; with several processes, their mean
    psi: Tensor  #: ψ, the required ⟨∇c, g⟩
    lam: Tensor  #: the multiplier of the Lagrangian f2 + Σ lam·c, in the wrapper's metric under EpsilonWrapper
    dot: Tensor  #: ⟨∇c, d⟩
    sq_constraint: Tensor  #: ⟨∇c, P⁻¹∇c⟩
    shortfall: Tensor  #: ψ − ⟨∇c, g⟩ if the constraints contradict each other or a limit applies; else about 0
    sq_direction: Tensor  #: ‖d‖²_P
    scale: Tensor  #: factor of the global-norm clipping, 1 if nothing was clipped
    gap: Tensor  #: running mean of c − ε, over about 10/rate steps
    skipped: Tensor  #: bool, true if a value was not finite and so nothing was written


@dataclass
class GradientNorm:
    """ψ = α‖g1‖^δ in the metric P⁻¹: drives f1 to its infimum, which need not be known.

    Source: Feng et al., ICLR 2025, Phase I, where δ = 2 is the fastest.

    Args:
        alpha: α > 0; for δ = 2, the required fraction of a gradient step on f1.
        delta: δ ≥ 0.
        cap: β of the dynamic barrier's cap ψ ≤ β‖g1‖² (Gong, Liu, Liu, NeurIPS 2021); ``None``: uncapped.
    """

    alpha: float = 1.0
    delta: float = 2.0
    cap: float | None = None

    def coefficients(self) -> tuple[float | Tensor, ...]:
        """Return the entries KIND … INTEGRATES of the control block; raise ``ValueError`` for values out of range."""
        _check("alpha", self.alpha, lambda alpha: alpha > 0)
        _check("delta", self.delta, lambda delta: delta >= 0)
        _check("cap", self.cap, lambda cap: cap is None or cap > 0)
        return (
            float(Kind.GRADIENT_NORM),
            0.0,
            self.alpha,
            0.0,
            self.delta,
            inf if self.cap is None else self.cap,
            False,
        )


@dataclass
class EpsilonGap:
    """Drives c to ε: ψ = α·sign(c − ε)·|c − ε|^δ (Feng et al., ICLR 2025, Phase II; δ = 1, α = 1 is eq. 6).

    One step of learning rate μ changes c by about −μψ, so by default α = rate/μ: each step shrinks the gap by the
    fraction ``rate`` at any learning rate. Below ε, ψ < 0: a step may then increase c.

    With δ = 1, ψ is corrected so that noisy minibatches settle at ε on average: c should follow a model that closes
    ``rate`` of its gap in each step, and what it lacks is integrated. Without noise the correction is zero.

    Args:
        epsilon: ε, in c's units. May be changed between steps. ε, ``rate`` and ``alpha`` may be 0-d tensors on the
            parameters' device; every step reads them, also a step replayed from a CUDA graph.
        rate: fraction of the gap that each step closes, 0 < rate ≤ 1. Ignored if ``alpha`` is given.
        delta: δ > 0; the sign of ψ is that of c − ε for every δ.
        alpha: α > 0, replaces rate/μ.
        cap: β of the dynamic barrier's cap ψ ≤ β⟨∇c,P⁻¹∇c⟩ (Gong, Liu, Liu, NeurIPS 2021); ``math.inf`` for none.
            ``None``: no step is longer along P⁻¹∇c than the first one or a plain gradient step on c, and shorter ones
            while c oscillates; so an ε that no parameters reach costs nothing but time.
        integral: whether ψ is corrected for noise (δ = 1 only). False: ψ is exactly the formula above, as in the paper,
            for runs that measure c over all data at the end and correct ε themselves.
        equality: whether c = ε is required rather than c ≤ ε: steps then also prevent c from falling below ε.
    """

    epsilon: float | Tensor
    rate: float | Tensor = 0.1
    delta: float = 1.0
    alpha: float | Tensor | None = None
    cap: float | None = None
    integral: bool = True
    equality: bool = field(default=False, kw_only=True)

    def coefficients(self) -> tuple[float | Tensor, ...]:
        """Return the entries KIND … INTEGRATES of the control block; raise ``ValueError`` for values out of range."""
        _check("epsilon", self.epsilon, isfinite)
        _check("rate", self.rate, lambda rate: 0 < rate <= 1)
        _check("delta", self.delta, lambda delta: delta > 0)
        _check("alpha", self.alpha, lambda alpha: alpha is None or alpha > 0)
        _check("cap", self.cap, lambda cap: cap is None or cap > 0)
        _check("integral", self.integral, lambda integral: isinstance(integral, bool))  # it was a number once
        alpha, cap = nan if self.alpha is None else self.alpha, nan if self.cap is None else self.cap
        return (float(Kind.EPSILON_GAP), self.epsilon, alpha, self.rate, self.delta, cap, self.integral)


def _check(name: str, value: T | Tensor, good: Callable[[T], bool]) -> None:
    if not isinstance(value, Tensor) and not good(value):  # reading a tensor's value would synchronise
        raise ValueError(f"control: {name}={value!r} is out of range; see the docstring of the control function")
