"""Training of one model with a sequence of controls, such as a sequence of ε."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..models import I2IModel
from ..optim import EpsilonAdamW, EpsilonGap, GradientNorm, sharpness
from . import divergence
from ._training_state import restore, training_state
from .batches import Batch
from .encoder import Encoder
from .history import History
from .journal import Journal
from .objectives import Objectives
from .progress import OnStep, Throttle
from .schedule import SCHEDULE, steps_per_anchor
from .training_loop import BETAS, Loop

__all__ = ["Trainer"]

_UNNAMED = ""  # the only request of a trainer whose objectives are not a dict


class Trainer:
    """A trainer of one model's encoder with one control after another; the optimizer's state is kept between them.

    With several processes, each computes its share of every minibatch. All end with the same model, which equals that
    of one process up to rounding.

    Args:
        model: the model; its encoder is trained in place.
        objectives: f1 and f2 with their targets; or those of several requests by name, which share f2. Each request is
            a constraint of its own, and every step has a minibatch of each.
        history: history to which every step is appended; for several requests, one for each, by name.
        on_step: called at most ten times per second, with the values of the first request.
        journal: provides the results of an earlier process.
    """

    def __init__(
        self,
        model: I2IModel,
        objectives: Objectives | Mapping[str, Objectives],
        history: History | Mapping[str, History],
        on_step: OnStep | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._several = isinstance(objectives, Mapping)
        self._goals = dict(objectives) if isinstance(objectives, Mapping) else {_UNNAMED: objectives}
        self.objectives = next(iter(self._goals.values()))
        self.settings = self.objectives.settings
        self._throttle = Throttle()
        self._journal = journal or Journal()
        self.encode = Encoder(model, self.settings)
        # No weight decay: it would pull the encoder away from θ0, where f2 is minimal. The averages of ∇f1 and ∇f2 have
        # the same decay: averages with different lags would not balance.
        self.optimizer = EpsilonAdamW(
            model.encoder_parameters(), lr=self.settings.lr, betas=BETAS, weight_decay=0.0, control=GradientNorm(),
            constraint_grad_ema=BETAS[0],
        )  # fmt: skip
        forgets = [goal.forget for goal in self._goals.values()]
        self._loop = Loop(model, self.objectives, self.settings, self.optimizer, forgets)
        self.report_to(history, on_step)

    def report_to(self, history: History | Mapping[str, History], on_step: OnStep | None = None) -> None:
        """Report further steps to another history and callback; the arguments are those of the class."""
        self._histories = dict(history) if isinstance(history, Mapping) else {_UNNAMED: history}
        self._on_step = on_step
        self.steps_planned, self._first, self._before = 0, len(self.history), self._loop.steps_taken

    @property
    def history(self) -> History:
        """The history of the first request."""
        return next(iter(self._histories.values()))

    @property
    def steps_taken(self) -> int:
        """Number of steps since :meth:`report_to`, with all controls."""
        return self._loop.steps_taken - self._before

    def approach(self, epsilon: float, steps: int | None = None) -> tuple[float, float]:
        """Take steps of min f2 s.t. f1 ≤ ε, for one request.

        Args:
            epsilon: ε.
            steps: number of steps; by default that of an anchor, see :func:`steps_per_anchor`.

        Returns:
            (f1, f2) over both whole sets.
        """
        self.train(_gap(epsilon, self.settings.rate), steps or steps_per_anchor(self.objectives), epsilon)
        return self._journal.recall(lambda: self.objectives.evaluate(self.encode))

    def approach_all(self, epsilons: Mapping[str, float], steps: int) -> tuple[dict[str, float], float]:
        """Take steps of min f2 s.t. f1 ≤ ε for every request.

        Args:
            epsilons: ε of each request.
            steps: number of steps.

        Returns:
            f1 of each request over its whole set, and f2 over the whole retain set.
        """
        control = {name: _gap(epsilon, self.settings.rate) for name, epsilon in epsilons.items()}
        self.train(control, steps, epsilons)
        return self._journal.recall(
            lambda: (
                {name: goal.evaluate_f1(self.encode) for name, goal in self._goals.items()},
                self.objectives.evaluate_f2(self.encode),
            )
        )

    def train(
        self,
        control: EpsilonGap | GradientNorm | dict[str, EpsilonGap],
        steps: int,
        epsilon: float | Mapping[str, float] = math.nan,
    ) -> None:
        """Take steps with one control; the learning rate is constant for half of them and then decreases to 0.

        Args:
            control: control function ψ; for several requests, one for each, by name.
            steps: number of steps.
            epsilon: the ε to record in the history; for several requests, by name.
        """
        self.optimizer.control = {**control} if isinstance(control, dict) else control
        (group,) = self.optimizer.param_groups
        # A gradient-norm control minimises f1 alone, so the metric is that of ∇f1.
        group["constraint_weight"] = 1.0 if isinstance(control, GradientNorm) else SCHEDULE.constraint_weight
        self.steps_planned = max(self.steps_planned, self.steps_taken + steps)
        epsilons = dict(epsilon) if isinstance(epsilon, Mapping) else {_UNNAMED: epsilon}
        begin = len(self.history)
        self._resume(epsilons)
        for *forgets, retain in self._loop.minibatches(self.settings.lr, steps, taken=len(self.history) - begin):
            for (name, goal), forget in zip(self._goals.items(), forgets, strict=True):
                f1 = self._constraint(goal, forget)
                self.optimizer.hold_constraint(f1, name or None, scaler=self._loop.scaler)
            f2 = self._loop.backward(self.objectives.f2(self._loop.encode, retain), retain)
            self._loop.step()
            stats = self.optimizer.stats if self._several else {_UNNAMED: self.optimizer.stats}
            for name, history in self._histories.items():
                history.append(epsilons[name], stats[name], f2)
            if self._on_step is not None and self._throttle.due():
                first = stats[next(iter(self._goals))]
                self._on_step(self.steps_taken, self.steps_planned, first, f2.item())
            if self.steps_taken % divergence.WATCHED == 0:
                self._check_divergence()
            self._journal.checkpoint(
                lambda: {"rows": self._rows_since(begin), **training_state(self.optimizer, self._loop.scaler)}
            )
        self._journal.end_segment({"rows": self._rows_since(begin)})

    def _constraint(self, goal: Objectives, batch: Batch) -> torch.Tensor:
        """Return f1 of a minibatch, 0-d, and add ∇f1 to ``p.grad``: at the worst neighbour, if the settings say so.

        f1 is that of the model itself in both cases, because ε is.
        """
        f1 = self._loop.backward(goal.f1(self._loop.encode, batch), batch)
        if self.settings.sharpness:
            with sharpness(self.optimizer.param_groups[0]["params"], self.settings.sharpness):
                self._loop.backward(goal.f1(self._loop.encode, batch), batch)
        return f1

    def _rows_since(self, begin: int) -> dict[str, torch.Tensor]:
        return {name: history.since(begin) for name, history in self._histories.items()}

    def _resume(self, epsilons: Mapping[str, float]) -> None:
        """Restore what an earlier process did in this segment; for a finished segment, only the histories."""
        before = self._journal.begin_segment()
        if before is None:
            return
        device = self.optimizer.param_groups[0]["params"][0].device
        taken = len(self.history)
        for name, rows in before["rows"].items():
            self._histories[name].extend(epsilons[name], rows.to(device))
        self._loop.steps_taken += len(self.history) - taken
        if "parameters" in before:
            restore(before, self.optimizer, self._loop.scaler)

    def _check_divergence(self) -> None:
        scaler = self._loop.scaler
        for history in self._histories.values():
            divergence.check(
                history.since(len(history) - divergence.WATCHED),
                history.since(self._first, self._first + 1)[0, 0].item(),
                self.steps_taken,
                None if scaler is None else scaler.get_scale(),
            )


def _gap(epsilon: float, rate: float) -> EpsilonGap:
    """Return the control of one request.

    A segment is short and its learning rate falls to 0: what the integral compensates early is an error at the end. On
    the demo the anchor at ε = 0.062 ended at 0.045 with it, and at 0.063 without.
    """
    return EpsilonGap(epsilon, rate, cap=SCHEDULE.psi_cap, integral=False)
