"""One constrained run: its steps under one ε after another, and its history."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..models import I2IModel
from ..optim import EpsilonAdamW
from ..optim.control import EpsilonGap, GradientNorm, StepStats
from . import divergence
from .encoder import Encoder
from .history import History
from .journal import Journal
from .objectives import Objectives
from .progress import Throttle
from .training_loop import BETAS, Loop

__all__ = [
    "CAP",
    "EPOCHS",
    "MOST_STEPS",
    "WEIGHT",
    "OnStep",
    "Run",
    "steps_per_anchor",
    "warn_if_outside",
    "warn_if_skipped",
]

# What was measured of these, and of the schedule, is in docs/theory.md.
WEIGHT = 0.001  # of ∇f1² in AdamW's metric: near a front ∇f1 dwarfs ∇f2, and steps on f2 would be short
CAP = 1.0  # of ψ, in ‖∇f1‖²: what a step along ∇f1 alone gives; without it λ would grow without bound at f1*
EPOCHS, MOST_STEPS = 2.5, 400  # of an anchor, where the settings give no number of steps

OnStep = Callable[[int, int, StepStats, float], None]  # steps taken, steps planned so far, what the step saw, f2


class Run:
    """Trains one model's encoder under one control after another; the optimizer's state is kept between them.

    In several processes each takes its share of every minibatch, and all end with the same model: that of one process,
    to rounding.

    Args:
        model: trained in place.
        objectives: f1 and f2 with their targets.
        history: appended to.
        on_step: called at most ten times a second with (steps taken, steps planned so far, stats, f2).
        journal: knows what was trained and evaluated before.
    """

    def __init__(
        self,
        model: I2IModel,
        objectives: Objectives,
        history: History,
        on_step: OnStep | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.objectives, self.settings = objectives, objectives.settings
        self._throttle = Throttle()
        self._journal = journal or Journal()
        self.encode = Encoder(model, self.settings)
        # No weight decay: it would pull the encoder away from θ0, which is where f2 is least. The average of ∇f1 has
        # the decay of AdamW's average of ∇f2: averages that lag differently would not balance.
        self.optimizer = EpsilonAdamW(
            model.encoder_parameters(), lr=self.settings.lr, betas=BETAS, weight_decay=0.0, control=GradientNorm(),
            constraint_grad_ema=BETAS[0],
        )  # fmt: skip
        self._loop = Loop(model, objectives, self.settings, self.optimizer)
        self.report_to(history, on_step)

    def report_to(self, history: History, on_step: OnStep | None = None) -> None:
        """Report the steps from here on to another history and callback; the arguments are those of the class."""
        self.history, self._on_step = history, on_step
        self.steps_planned, self._first, self._before = 0, len(history), self._loop.steps_taken

    @property
    def steps_taken(self) -> int:
        """Steps under all controls so far, since :meth:`report_to`."""
        return self._loop.steps_taken - self._before

    def approach(self, epsilon: float, steps: int | None = None) -> tuple[float, float]:
        """Take steps of min f2 s.t. f1 ≤ ε.

        Args:
            epsilon: ε.
            steps: how many; by default those of an anchor, see :func:`steps_per_anchor`.

        Returns:
            (f1, f2) over the whole of both sets.
        """
        steps = steps or steps_per_anchor(self.objectives)
        self.train(EpsilonGap(epsilon, self.settings.rate, cap=CAP), steps, epsilon)
        return self._journal.recall(lambda: self.objectives.evaluate(self.encode))

    def train(self, control: EpsilonGap | GradientNorm, steps: int, epsilon: float = math.nan) -> None:
        """Take steps under one control; the learning rate is held for half of them and then falls to 0.

        Args:
            control: ψ.
            steps: how many.
            epsilon: what the history says was asked for.
        """
        self.optimizer.control = control
        (group,) = self.optimizer.param_groups
        group["constraint_weight"] = 1.0 if isinstance(control, GradientNorm) else WEIGHT  # Phase I is after f1 alone
        self.steps_planned = max(self.steps_planned, self.steps_taken + steps)
        loop, objectives, begin = self._loop, self.objectives, len(self.history)
        if (before := self._journal.begin_segment()) is not None:
            self._take_up(before, epsilon)
        for forget, retain in loop.minibatches(self.settings.lr, steps, taken=len(self.history) - begin):
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

    def _check_divergence(self) -> None:
        scaler = self._loop.scaler
        divergence.check(
            self.history.since(len(self.history) - divergence.WATCHED),
            self.history.since(self._first, self._first + 1)[0, 0].item(),
            self.steps_taken,
            None if scaler is None else scaler.get_scale(),
        )

    def _state(self, begin: int) -> dict[str, Any]:
        """Return all that the next step depends on, and the rows of the steps since one."""
        scaler = self._loop.scaler
        return {
            "rows": self.history.since(begin),
            "parameters": self._parameters,
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    @torch.no_grad()
    def _take_up(self, before: dict[str, Any], epsilon: float) -> None:
        """Go on from a :meth:`_state`; of a segment that was finished before, only the history is known."""
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


def steps_per_anchor(objectives: Objectives) -> int:
    """Return the settings' steps or, where they give none, as many as suit a model that nobody has seen.

    f1 must have the time to get there: a step closes ``rate`` of the gap, so 3/rate steps close 95 % of it, and the
    learning rate is held for half of the steps. And the images must be seen often enough: ``EPOCHS`` times.
    """
    settings, images = objectives.settings, max(len(objectives.forget), len(objectives.retain))
    by_epochs = min(round(EPOCHS * images / settings.batch_size), MOST_STEPS)
    return settings.steps or max(round(6 / settings.rate), by_epochs)


def warn_if_skipped(histories: Iterable[History]) -> None:
    """Warn when steps were skipped, for a number that was not finite."""
    rows = [row for history in histories for row in history.rows()]
    if skipped := sum(row[-1] for row in rows):
        warnings.warn(
            f"{skipped} of {len(rows)} steps met a number that is not finite, and were skipped; the others are sound.",
            stacklevel=3,
        )


def warn_if_outside(epsilon: float, lowest: float, original: float) -> None:
    """Warn when ε cannot be reached, or asks for nothing.

    Args:
        epsilon: ε.
        lowest: f1 of the most forgotten model; 0 where that is not known.
        original: f1 of the unmodified model.
    """
    if epsilon < lowest:
        warnings.warn(
            f"ε = {epsilon:.4g} is below f1 = {lowest:.4g}, the least that can be reached: the model will forget as "
            "far as it can, f1 will end above ε, and the retained images will pay for it.",
            stacklevel=3,
        )
    elif epsilon > original:
        warnings.warn(
            f"ε = {epsilon:.4g} is above f1 = {original:.4g} of the unmodified model: the constraint asks for nothing, "
            "so the model stays as it is.",
            stacklevel=3,
        )
