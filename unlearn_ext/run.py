"""One constrained run: its steps, its history, and the last correction that makes ε exact."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from . import divergence
from .control import EpsilonGap, GradientNorm, StepStats
from .encoder import Encoder
from .journal import Journal
from .loop import Loop
from .models import I2IModel
from .objectives import Objectives
from .optim import EpsilonAdamW
from .progress import Throttle
from .settings import Settings

# Of ∇f1 over minibatches: less of its noise ends in f2. Next to f1*, where λ is largest, f2 is 0.07 by 0.9, 0.15 by
# 0.95 and 0.24 by 0.7 (small VQ-GAN); further away they are alike.
SMOOTHING = 0.9
# w in the metric, whose v is of w∇f1² + ∇f2². Near a front ∇f1 dwarfs ∇f2, and with w = 1 says alone how long a step
# is: f2 falls slowly and rests high. Where f1 is 0.24 of what it was, f2 is 0.017 with w = 1, 0.009 with 0.01 and 0.007
# with this (small MAE); next to f1*, 0.091, 0.026 and 0.019.
WEIGHT = 0.001
# Of ψ, in ‖∇f1‖², so of λ. Next to f1*, where ∇f1 vanishes and the gap does not, λ grows without bound otherwise, and
# takes the model apart. With less, some runs there stop short of ε.
BARRIER = 0.3
NEARER = 0.9  # of the gap before it: a correction that leaves more has come to the end of what can be forgotten
NEAR = 4  # tolerances from ε: f1 has arrived, and f2 may come to rest
FAR = 16  # tolerances from ε: there, f1 must come nearer, …
LEAST = 0.25  # … by so much of what ψ demands, or it never will at this learning rate
MOVES = 0.05  # of itself, over a window: by no more, up or down, f2 is at rest at this learning rate …
WORTH = 1e-4  # … and by less than that, in variances of the latents, its fall is not worth a step
WINDOWS = 4  # to a run's steps …
WINDOW = 3  # … but of no fewer steps: f2 of one minibatch is a quarter off (small VQ-GAN)
MOST = 2  # times a run's steps, until the learning rate falls whether f2 rests or not
# Adam's steps are as long near the unmodified model as far from it, but the way there is short: f2 rises to what such
# steps cost, and takes hundreds of them to fall. So near it, the learning rate goes with the way.
WHOLE_FROM = 0.5  # share of f1 given up, from which on the learning rate is whole …
LEAST_RATE = 0.1  # … and what is left of it where next to nothing is

OnStep = Callable[[int, int, StepStats, float], None]  # steps taken, steps planned so far, what the step saw, f2


@dataclass
class History:
    """f1, f2, ψ, λ and whether it was skipped, of every step, kept on the device until they are asked for."""

    epsilons: list[float] = field(default_factory=list)
    _rows: list[torch.Tensor] = field(default_factory=list)

    def append(self, epsilon: float, stats: StepStats, f2: torch.Tensor) -> None:
        """Record a step; does not make the host wait."""
        self.epsilons.append(epsilon)
        values = (stats.constraint, f2, stats.psi, stats.lam, stats.skipped)
        self._rows.append(torch.stack([value.to(torch.float64) for value in values]))

    def __len__(self) -> int:
        return len(self.epsilons)

    def since(self, begin: int, end: int | None = None) -> torch.Tensor:
        """f1, f2, ψ, λ and whether it was skipped, float64 [N, 5], of the steps from one on; one synchronisation."""
        rows = self._rows[begin:end]
        return torch.stack(rows).cpu() if rows else torch.empty(0, 5, dtype=torch.float64)

    def extend(self, epsilon: float, rows: torch.Tensor) -> None:
        """Record steps of which :meth:`since` told."""
        self.epsilons.extend([epsilon] * len(rows))
        self._rows.extend(rows)

    def rows(self) -> Iterator[tuple[int, float, float, float, float, float, int]]:
        """(step, epsilon, f1, f2, psi, lam, skipped) of every step; one synchronisation for all."""
        values = self.since(0).tolist()
        for step, (epsilon, (f1, f2, psi, lam, skipped)) in enumerate(zip(self.epsilons, values, strict=True)):
            yield step, epsilon, f1, f2, psi, lam, int(skipped)


class Run:
    """Trains one model's encoder under one control after another, on one optimizer state.

    In several processes each takes its share of every minibatch, and all end with the same model: that of one process,
    to rounding.

    Args:
        model: trained in place.
        objectives: f1 and f2 with their targets.
        settings: learning rate, batches, seed.
        history: appended to.
        on_step: called at most ten times a second with (steps taken, steps planned so far, stats, f2).
        journal: knows what was trained and evaluated before.
    """

    def __init__(
        self,
        model: I2IModel,
        objectives: Objectives,
        settings: Settings,
        history: History,
        on_step: OnStep | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.objectives, self.settings = objectives, settings
        self._throttle = Throttle()
        self._journal = journal or Journal()
        self.encode = Encoder(model, settings)
        # No weight decay: it would pull the encoder away from θ0, which is where f2 is least.
        self.optimizer = EpsilonAdamW(
            model.encoder_parameters(), lr=settings.lr, weight_decay=0.0, control=GradientNorm(),
            constraint_grad_ema=SMOOTHING,
        )  # fmt: skip
        self._loop = Loop(model, objectives, settings, self.optimizer)
        self.tell(history, on_step)

    def tell(self, history: History, on_step: OnStep | None = None) -> None:
        """Of the steps from here on; none of them was taken yet.

        Args:
            history: appended to.
            on_step: called at most ten times a second with (steps taken, steps planned so far, stats, f2).
        """
        self.history, self._on_step = history, on_step
        self.steps_planned, self._first, self._before = 0, len(history), self._loop.steps_taken

    @property
    def steps_taken(self) -> int:
        """Under all controls so far, since :meth:`tell`."""
        return self._loop.steps_taken - self._before

    def descend(self, steps: int) -> None:
        """Phase I dynamics, ψ = α‖∇f1‖²: f1 falls towards its infimum."""
        self.train(GradientNorm(alpha=1.0), self.settings.lr, steps)

    def meet(self, epsilon: float, original: float, steps: int | None = None) -> tuple[float, float]:
        """min f2 s.t. f1 ≤ ε, for as long as it takes, then corrections until ε is met over the whole forget set.

        The learning rate is held until f1 is near ε and f2 has come to rest, twice the given steps at most, and then
        falls to 0 over as many: a run takes little more than half as many again next to its neighbour on the front, and
        three times as many from far away. It is the settings' where ε gives up half of f1 or more, and in proportion
        less where ε gives up less.

        Minibatches meet ε on average over the last steps; what offset is left over the whole set is measured and
        allowed for in at most three short corrections. An ε that f1 comes no nearer to from above is not chased: it is
        lower than f1 can go, at this learning rate and in so many steps.

        Args:
            epsilon: ε.
            original: f1 of the unmodified model; the settings' tolerance is a share of it.
            steps: the settings' by default.

        Returns:
            (f1, f2) over the whole of both sets.
        """
        given_up = (1 - epsilon / original) / WHOLE_FROM
        lr = self.settings.lr * min(max(LEAST_RATE, given_up), 1)
        tolerance, steps = self.settings.tolerance * original, steps or self.settings.steps
        self._hold_until_at_rest(epsilon, tolerance, lr, steps)
        aim, before = epsilon, math.inf
        correction = (lr / 3, max(steps // 3, 1))
        for rate, count in ((lr, steps), correction, correction, correction):
            self.train(self._towards(aim), rate, count, epsilon)
            f1 = self.evaluate_f1()
            gap = f1 - epsilon
            if not abs(gap) > tolerance or gap > NEARER * before:
                break
            aim, before = aim - gap, abs(gap)
        return f1, self._journal.recall(lambda: self.objectives.evaluate_f2(self.encode))

    def evaluate_f1(self) -> float:
        """f1 over the whole forget set."""
        return self._journal.recall(lambda: self.objectives.evaluate_f1(self.encode))

    def train(
        self, control: EpsilonGap | GradientNorm, lr: float, steps: int, epsilon: float = math.nan, *, held: int = 0
    ) -> None:
        """So many steps under one control.

        Args:
            control: ψ.
            lr: learning rate at first; it falls linearly to 0.
            steps: how many.
            epsilon: what the history says was asked for.
            held: steps until the rate begins to fall.
        """
        self.optimizer.control = control
        (group,) = self.optimizer.param_groups
        group["constraint_weight"] = 1.0 if isinstance(control, GradientNorm) else WEIGHT  # Phase I is after f1 alone
        self.steps_planned = max(self.steps_planned, self.steps_taken + steps)
        loop, objectives, begin = self._loop, self.objectives, len(self.history)
        if (before := self._journal.begin_segment()) is not None:
            self._take_up(before, epsilon)
        for forget, retain in loop.minibatches(lr, steps, held, taken=len(self.history) - begin):
            f1 = loop.backward(objectives.f1(loop.encode, forget), forget)
            self.optimizer.hold_constraint(f1, loop.scaler)
            f2 = loop.backward(objectives.f2(loop.encode, retain), retain)
            loop.step()
            stats = self.optimizer.stats
            self.history.append(epsilon, stats, f2)
            if self._on_step is not None and self._throttle.due():
                self._on_step(self.steps_taken, self.steps_planned, stats, f2.item())
            if self.steps_taken % divergence.WATCHED == 0:
                self._check_divergence()
            self._journal.checkpoint(lambda: self._state(begin))
        self._journal.end_segment({"rows": self.history.since(begin)})

    def _hold_until_at_rest(self, epsilon: float, tolerance: float, lr: float, steps: int) -> None:
        """Steps at one learning rate, a window after the other, until no more is to be had of it.

        That is where f1 has arrived, and f2 over the minibatches of a window is about what it was over those of the one
        before (the way there makes it rise, and then it falls); or where f1 is far away and does not come nearer.
        """
        rate, window = self.settings.rate, max(steps // WINDOWS, min(WINDOW, steps))
        gap_before = f2_before = math.inf
        self.steps_planned = self.steps_taken + min(3 * window, MOST * steps) + steps
        for _ in range(MOST * steps // window):
            begin = len(self.history)
            self.train(self._towards(epsilon), lr, window, epsilon, held=window)
            f1, f2 = self.history.since(begin)[:, :2].mean(0).tolist()
            gap = abs(f1 - epsilon)
            if gap <= NEAR * tolerance:
                if abs(f2_before - f2) <= max(MOVES * f2, WORTH):
                    break
                f2_before = f2
            elif gap > FAR * tolerance and gap > gap_before * (1 - LEAST * (1 - (1 - rate) ** window)):
                break
            gap_before = gap

    def _towards(self, epsilon: float) -> EpsilonGap:
        return EpsilonGap(epsilon, self.settings.rate, cap=BARRIER)

    def _check_divergence(self) -> None:
        scaler = self._loop.scaler
        divergence.check(
            self.history.since(len(self.history) - divergence.WATCHED),
            self.history.since(self._first, self._first + 1)[0, 0].item(),
            self.steps_taken,
            None if scaler is None else scaler.get_scale(),
        )

    def _state(self, begin: int) -> dict[str, Any]:
        """All that the next step depends on, and the steps that were taken since one."""
        scaler = self._loop.scaler
        return {
            "rows": self.history.since(begin),
            "parameters": self._parameters,
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    @torch.no_grad()
    def _take_up(self, before: dict[str, Any], epsilon: float) -> None:
        """Go on from a :meth:`_state`; where a segment was finished before, only its steps are told."""
        self.history.extend(epsilon, before["rows"].to(self._parameters[0].device))
        self._loop.steps_taken += len(before["rows"])
        if "parameters" not in before:
            return
        for parameter, value in zip(self._parameters, before["parameters"], strict=True):
            parameter.copy_(value)
        for number, moments in before["optimizer"]["state"].items():
            parameter = self._parameters[number]
            for name, value in moments.items():
                if value.shape == parameter.shape:  # they lay in memory as it does, and sums are taken in that order
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.optimizer.load_state_dict(before["optimizer"])
        if self._loop.scaler is not None:
            self._loop.scaler.load_state_dict(before["scaler"])

    @property
    def _parameters(self) -> list[torch.Tensor]:
        return self.optimizer.param_groups[0]["params"]


def warn_if_missed(epsilon: float, f1: float, tolerance: float) -> None:
    """Warn when a run has ended and f1 is above ε by more than the tolerance: how low f1 can go, nobody told it."""
    if f1 - epsilon > tolerance:
        warnings.warn(
            f"ε = {epsilon:.4g} was not reached: f1 is {f1:.4g}. Either this encoder cannot forget that much of these "
            "images, or it needs more steps (--steps).",
            stacklevel=3,
        )


def warn_if_skipped(histories: Iterable[History]) -> None:
    """Warn when steps were skipped, for a number that was not finite."""
    rows = [row for history in histories for row in history.rows()]
    if skipped := sum(row[-1] for row in rows):
        warnings.warn(
            f"{skipped} of {len(rows)} steps met a number that is not finite, and were skipped; the others are sound.",
            stacklevel=3,
        )


def warn_if_outside(epsilon: float, highest: float, lowest: float) -> None:
    """Warn when ε is outside the boundaries.

    Args:
        epsilon: ε.
        highest: f1 at the highest completeness.
        lowest: f1 at the lowest completeness, or of the unmodified model where that boundary is not known.
    """
    if epsilon < highest:
        warnings.warn(
            f"ε = {epsilon:.4g} is below f1 = {highest:.4g}, the least that can be reached: the model will forget as "
            "far as it can, f1 will end above ε, and the retained images will pay for it.",
            stacklevel=3,
        )
    elif epsilon > lowest:
        warnings.warn(
            f"ε = {epsilon:.4g} is above f1 = {lowest:.4g}, where forgetting already costs next to nothing: the "
            "constraint asks for even less, so the model will stay close to unmodified.",
            stacklevel=3,
        )
