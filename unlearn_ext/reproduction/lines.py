"""Models on the straight lines of a sweep: between neighbours in it, and to the unmodified model; the same for all."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ..models import I2IModel
from ..unlearning.dial import encoder_state, mix
from ..unlearning.pareto import TRAINED
from .table import UNMODIFIED

__all__ = ["BETWEEN", "TO_UNMODIFIED", "Candidate", "Leg", "State", "candidates"]

BETWEEN = (1 / 3, 2 / 3)  # shares of the later of two neighbours in a sweep
TO_UNMODIFIED = (1 / 2,)  # shares of a trained model; the rest is the unmodified one

State = Sequence[torch.Tensor]  # values of the encoder's parameters, on the CPU


class Leg(NamedTuple):
    """A model that a sweep trained.

    Attributes:
        value: of the knob: ε, a weight, τ; NaN where there is none.
        encoder: values of the encoder's parameters, on the CPU.
        pairs: gradient pairs from the unmodified model on.
    """

    value: float
    encoder: State
    pairs: int


class Candidate(NamedTuple):
    """A model to be judged.

    Attributes:
        point: what it is called: the number of its leg, from 1, or the mixture that it is.
        value: of the knob, NaN of a mixture.
        made_of: ``"trained"``, or the mixture, such as ``"0.333*3 + 0.667*2"``.
        pairs: gradient pairs that had been taken when it could be made.
        model: one object for all candidates, set to each in turn.
    """

    point: str
    value: float
    made_of: str
    pairs: int
    model: I2IModel


def candidates(unmodified: I2IModel, legs: Sequence[Leg]) -> Iterator[Candidate]:
    """Yield the models of a sweep, and then the mixtures.

    Args:
        unmodified: what the sweep began at; not changed.
        legs: of the sweep, in its order.
    """
    model, original = copy.deepcopy(unmodified), encoder_state(unmodified)
    for number, leg in enumerate(legs, 1):
        mix(model, leg.encoder, leg.encoder, 1.0)
        yield Candidate(str(number), leg.value, TRAINED, leg.pairs, model)
    named = [(str(number), leg.encoder) for number, leg in enumerate(legs, 1)]
    between = ((*ends, share) for ends in itertools.pairwise(named) for share in BETWEEN)
    outwards = (((UNMODIFIED, original), end, share) for end in named for share in TO_UNMODIFIED)
    for (less, start), (more, end), share in (*between, *outwards):
        mix(model, start, end, share)
        made_of = f"{share:.3g}*{more} + {1 - share:.3g}*{less}"
        yield Candidate(made_of, math.nan, made_of, legs[int(more) - 1].pairs, model)
