"""Models at any ε, by interpolating weights between the anchors of a sweep and the unmodified model.

The models on these lines are on the front or close to it, so a few evaluations replace a training run. If an anchor
that has forgotten more also has a lower f2 than the mixture, a model is trained instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from .._utils.distributed import local
from .._utils.process_memory import release
from ..models import I2IModel, load
from ..models.adapters import UNMODIFIED, Adapted, copied
from .encoder import Encoder
from .history import History
from .journal import Journal
from .objectives import Objectives
from .outcome import warn_if_outside
from .pareto import TRAINED, dominates
from .progress import OnStep
from .trainer import Trainer

__all__ = [
    "MAX_STEPS",
    "NEAR_F1",
    "NEAR_F2",
    "UNMODIFIED",
    "Anchor",
    "Dial",
    "Mixture",
    "Unlearned",
    "encoder_state",
    "mix",
    "restored",
    "root",
    "saved_state",
]

NEAR_F1 = 0.002  # how far below ε a mixture's f1 may be, as a fraction of the unmodified model's f1
NEAR_F2 = 0.03  # tolerance of a mixture's √f2, as a fraction of the root of its limit
MAX_STEPS = 20  # iterations of the search along a line


@dataclass(frozen=True)
class Anchor:
    """A trained model of the front, or the unmodified model, as an end of the lines.

    Attributes:
        name: name of its folder.
        encoder: values of the encoder's parameters, on the CPU.
        f1: f1 over the whole forget set.
        f2: f2 over the whole retain set.
    """

    name: str
    encoder: Sequence[torch.Tensor]
    f1: float
    f2: float


@dataclass(frozen=True)
class Mixture:
    """A point on the straight line between two anchors.

    Attributes:
        less: the anchor that has forgotten less.
        more: the anchor that has forgotten more.
        share: weight of ``more``, from 0 to 1; ``less`` has the weight 1 − share.
        f1: f1 over the whole forget set.
        f2: f2 over the whole retain set.
    """

    less: Anchor
    more: Anchor
    share: float
    f1: float
    f2: float

    def __str__(self) -> str:
        parts = ((self.share, self.more), (1 - self.share, self.less))
        return " + ".join(f"{share:.6g}*{anchor.name}" for share, anchor in parts if share)

    @property
    def is_dominated(self) -> bool:
        """Whether the anchor that has forgotten more dominates the mixture."""
        return dominates((self.more.f1, self.more.f2), (self.f1, self.f2))


class Unlearned(NamedTuple):
    """A model at an ε.

    Attributes:
        model: a separate copy.
        f1: f1 over the whole forget set.
        f2: f2 over the whole retain set.
        made_of: the mixture, such as ``"0.25*anchor-0.2613 + 0.75*anchor-0.6271"``, or ``"trained"``.
    """

    model: I2IModel
    f1: float
    f2: float
    made_of: str


class Dial:
    """Makes models at any ε from the anchors of a sweep and its unmodified model.

    Args:
        model: the unmodified model, from which the objectives were frozen; it is not changed.
        objectives: f1 and f2.
        f1_original: f1 of the unmodified model.
        anchors: anchors, from the least to the most forgotten.
    """

    def __init__(self, model: I2IModel, objectives: Objectives, f1_original: float, anchors: Sequence[Anchor]) -> None:
        self._objectives, self._model = objectives, copied(model)
        self._encode = Encoder(self._model, objectives.settings)
        self.anchors = [Anchor(UNMODIFIED, encoder_state(model), f1_original, 0.0), *anchors]

    @property
    def f1_star(self) -> float:
        """f1 of the most forgotten model."""
        return self.anchors[-1].f1

    def at(
        self, epsilon: float, history: History | None = None, on_step: OnStep | None = None,
        journal: Journal | None = None,
    ) -> Unlearned:  # fmt: skip
        """Return a model with min f2 s.t. f1 ≤ ε.

        The model is a mixture. If the mixture is dominated, training starts from it, and the trained model is returned
        if its f2 is lower.

        Args:
            epsilon: ε; outside the front, the result is the model at the nearer end, with a warning.
            history: receives every training step, if there are any.
            on_step: called during training, see :class:`unlearn_ext.unlearning.trainer.Trainer`.
            journal: provides the results of an earlier process.
        """
        warn_if_outside(epsilon, self.f1_star, self.anchors[0].f1)
        mixture = self.mixture(epsilon)
        made = self.model(mixture)
        if not mixture.is_dominated:
            return made
        release()
        trainer = Trainer(made.model, self._objectives, History() if history is None else history, on_step, journal)
        trained = Unlearned(made.model, *trainer.approach(epsilon), TRAINED)
        return trained if trained.f2 < mixture.f2 else self.model(mixture)

    def mixture(self, epsilon: float) -> Mixture:
        """Return a mixture with f1 at ε or just below, the one with the lower f2 of two; values are over whole sets.

        The two candidates are on the line between the neighbours of ε, and on the line from the unmodified model to
        the neighbour that has forgotten more.

        Args:
            epsilon: ε; outside the front, the result is the model at the nearer end.
        """
        unmodified, last = self.anchors[0], self.anchors[-1]
        if not last.f1 < epsilon < unmodified.f1:
            return _only(last if epsilon <= last.f1 else unmodified)
        less, more = next(pair for pair in itertools.pairwise(self.anchors) if pair[0].f1 >= epsilon > pair[1].f1)
        lines = {other.name: other for other in (less, unmodified)}.values()
        return min((self._meeting(epsilon, other, more) for other in lines), key=lambda mixture: mixture.f2)

    def costing(self, f2: float) -> Mixture:
        """Return the mixture with the lowest f1 whose f2, over the whole retain set, is at most this.

        The search begins at the unmodified model. f2 grows about quadratically with the distance, so the search
        interpolates √f2, which is closer to linear.
        """
        pairs = itertools.pairwise(self.anchors)
        less, more = next((pair for pair in pairs if pair[1].f2 > f2), (None, self.anchors[-1]))
        if less is None:
            return _only(more)
        aim, margin = (1 - NEAR_F2) * math.sqrt(f2), NEAR_F2 * math.sqrt(f2)

        def over(share: float) -> float:
            mix(self._model, less.encoder, more.encoder, share)
            return math.sqrt(self._objectives.evaluate_f2(self._encode)) - aim

        return self._mixture(less, more, root(over, math.sqrt(less.f2) - aim, math.sqrt(more.f2) - aim, margin))

    def model(self, mixture: Mixture) -> Unlearned:
        """Return a model with the weights of a mixture."""
        mix(self._model, mixture.less.encoder, mixture.more.encoder, mixture.share)
        return Unlearned(copied(self._model), mixture.f1, mixture.f2, str(mixture))

    def _meeting(self, epsilon: float, less: Anchor, more: Anchor) -> Mixture:
        """Return the mixture of two anchors that has f1 = ε, or up to ``NEAR_F1`` less."""
        near = NEAR_F1 * self.anchors[0].f1 / 2
        aim = epsilon - near

        def over(share: float) -> float:
            mix(self._model, less.encoder, more.encoder, share)
            return self._objectives.evaluate_f1(self._encode) - aim

        if more.f1 >= aim:
            return _only(more)
        return self._mixture(less, more, root(over, less.f1 - aim, more.f1 - aim, near))

    def _mixture(self, less: Anchor, more: Anchor, share: float) -> Mixture:
        mix(self._model, less.encoder, more.encoder, share)
        return Mixture(less, more, share, *self._objectives.evaluate(self._encode))


def encoder_state(model: I2IModel) -> list[torch.Tensor]:
    """Return copies of the encoder's parameters, on the CPU; of a sharded model, those of this process's parts."""
    return [parameter.detach().cpu().clone() for parameter in model.encoder_parameters()]


@torch.no_grad()
def mix(model: I2IModel, less: Sequence[torch.Tensor], more: Sequence[torch.Tensor], share: float) -> None:
    """Set a model's encoder parameters to (1 − share)·less + share·more; both come from :func:`encoder_state`."""
    if isinstance(model, Adapted):
        model.mix(less, more, share)
        return
    for parameter, a, b in zip(model.encoder_parameters(), less, more, strict=True):
        mine, a, b = (local(tensor, parameter) for tensor in (parameter, a, b))
        mine.copy_(torch.lerp(a, b, share))


def saved_state(model: I2IModel, folder: Path) -> list[torch.Tensor]:
    """Return the encoder's parameters of a saved model of the same kind, on the CPU; of an adapted one, its adapter.

    Raises:
        UserError: it cannot be loaded, or ``model`` is adapted and the saved model is not.
    """
    return model.read(folder) if isinstance(model, Adapted) else encoder_state(load(model.family, folder))


def restored(model: I2IModel, folder: Path) -> I2IModel:
    """Return a copy of a model with the encoder of a saved one; the errors are those of :func:`saved_state`."""
    made, state = copied(model), saved_state(model, folder)
    mix(made, state, state, 1.0)
    return made


def _only(anchor: Anchor) -> Mixture:
    return Mixture(anchor, anchor, 1.0, anchor.f1, anchor.f2)


def root(function: Callable[[float], float], at_0: float, at_1: float, near: float) -> float:
    """Return a point of [0, 1] at which a function is within ``near`` of 0.

    The method is the Illinois variant of regula falsi, with at most ``MAX_STEPS`` evaluations.

    Args:
        function: a continuous function.
        at_0: its value at 0.
        at_1: its value at 1, of the opposite sign.
        near: tolerance.
    """
    (a, at_a), (b, at_b) = (0.0, at_0), (1.0, at_1)
    for _ in range(MAX_STEPS):
        share = a + (b - a) * at_a / (at_a - at_b)
        value = function(share)
        if abs(value) <= near:
            break
        if (value > 0) != (at_b > 0):
            a, at_a = b, at_b
        else:
            at_a /= 2
        b, at_b = share, value
    return share
