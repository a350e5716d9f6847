"""Training of one model with a sequence of controls, such as a sequence of ε."""

from __future__ import annotations

import math

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


class Trainer:
    """A trainer of one model's encoder with one control after another; the optimizer's state is kept between them.

    With several processes, each computes its share of every minibatch. All end with the same model, which equals that
    of one process up to rounding.

    Args:
        model: the model; its encoder is trained in place.
        objectives: f1 and f2 with their targets.
        history: history to which every step is appended.
        on_step: called at most ten times per second.
        journal: provides the results of an earlier process.
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
        # No weight decay: it would pull the encoder away from θ0, where f2 is minimal. The averages of ∇f1 and ∇f2 have
        # the same decay: averages with different lags would not balance.
        self.optimizer = EpsilonAdamW(
            model.encoder_parameters(), lr=self.settings.lr, betas=BETAS, weight_decay=0.0, control=GradientNorm(),
            constraint_grad_ema=BETAS[0],
        )  # fmt: skip
        self._loop = Loop(model, objectives, self.settings, self.optimizer)
        self.report_to(history, on_step)

    def report_to(self, history: History, on_step: OnStep | None = None) -> None:
        """Report further steps to another history and callback; the arguments are those of the class."""
        self.history, self._on_step = history, on_step
        self.steps_planned, self._first, self._before = 0, len(history), self._loop.steps_taken

    @property
    def steps_taken(self) -> int:
        """Number of steps since :meth:`report_to`, with all controls."""
        return self._loop.steps_taken - self._before

    def approach(self, epsilon: float, steps: int | None = None) -> tuple[float, float]:
        """Take steps of min f2 s.t. f1 ≤ ε.

        Args:
            epsilon: ε.
            steps: number of steps; by default that of an anchor, see :func:`steps_per_anchor`.

        Returns:
            (f1, f2) over both whole sets.
        """
        steps = steps or steps_per_anchor(self.objectives)
        # A segment is short and its learning rate falls to 0: what the integral compensates early is an error at the
        # end. On the demo the anchor at ε = 0.062 ended at 0.045 with it, and at 0.063 without.
        control = EpsilonGap(epsilon, self.settings.rate, cap=SCHEDULE.psi_cap, integral=False)
        self.train(control, steps, epsilon)
        return self._journal.recall(lambda: self.objectives.evaluate(self.encode))

    def train(self, control: EpsilonGap | GradientNorm, steps: int, epsilon: float = math.nan) -> None:
        """Take steps with one control; the learning rate is constant for half of them and then decreases to 0.

        Args:
            control: control function ψ.
            steps: number of steps.
            epsilon: the ε to record in the history.
        """
        self.optimizer.control = control
        (group,) = self.optimizer.param_groups
        # A gradient-norm control minimises f1 alone, so the metric is that of ∇f1.
        group["constraint_weight"] = 1.0 if isinstance(control, GradientNorm) else SCHEDULE.constraint_weight
        self.steps_planned = max(self.steps_planned, self.steps_taken + steps)
        begin = len(self.history)
        self._resume(epsilon)
        for forget, retain in self._loop.minibatches(self.settings.lr, steps, taken=len(self.history) - begin):
            f1 = self._constraint(forget)
            self.optimizer.hold_constraint(f1, scaler=self._loop.scaler)
            f2 = self._loop.backward(self.objectives.f2(self._loop.encode, retain), retain)
            self._loop.step()
            stats = self.optimizer.stats
            self.history.append(epsilon, stats, f2)
            if self._on_step is not None and self._throttle.due():
                self._on_step(self.steps_taken, self.steps_planned, stats, f2.item())
            if self.steps_taken % divergence.WATCHED == 0:
                self._check_divergence()
            self._journal.checkpoint(
                lambda: {"rows": self.history.since(begin), **training_state(self.optimizer, self._loop.scaler)}
            )
        self._journal.end_segment({"rows": self.history.since(begin)})

    def _constraint(self, batch: Batch) -> torch.Tensor:
        """Return f1 of a minibatch, 0-d, and add ∇f1 to ``p.grad``: at the worst neighbour, if the settings say so.

        f1 is that of the model itself in both cases, because ε is.
        """
        f1 = self._loop.backward(self.objectives.f1(self._loop.encode, batch), batch)
        if self.settings.sharpness:
            with sharpness(self.optimizer.param_groups[0]["params"], self.settings.sharpness):
                self._loop.backward(self.objectives.f1(self._loop.encode, batch), batch)
        return f1

    def _resume(self, epsilon: float) -> None:
        """Restore what an earlier process did in this segment; for a finished segment, only the history."""
        before = self._journal.begin_segment()
        if before is None:
            return
        self.history.extend(epsilon, before["rows"].to(self.optimizer.param_groups[0]["params"][0].device))
        self._loop.steps_taken += len(before["rows"])
        if "parameters" in before:
            restore(before, self.optimizer, self._loop.scaler)

    def _check_divergence(self) -> None:
        scaler = self._loop.scaler
        divergence.check(
            self.history.since(len(self.history) - divergence.WATCHED),
            self.history.since(self._first, self._first + 1)[0, 0].item(),
            self.steps_taken,
            None if scaler is None else scaler.get_scale(),
        )
