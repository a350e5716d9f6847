"""Mixtures of a sweep's models: between neighbours, and with the unmodified model; the same for every method."""

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

BETWEEN = (1 / 3, 2 / 3)  # share of the later one of two neighbours
TO_UNMODIFIED = (1 / 2,)  # share of the trained model in a mixture with the unmodified one

State = Sequence[torch.Tensor]  # the encoder's parameters, on the CPU


class Leg(NamedTuple):
    """A model that a sweep trained.

    Attributes:
        value: value of the method's knob: ε, a weight, or τ; NaN for a method without a knob.
        encoder: the encoder's parameters, on the CPU.
        pairs: gradient pairs since the unmodified model.
    """

    value: float
    encoder: State
    pairs: int


class Candidate(NamedTuple):
    """A model to be evaluated.

    Attributes:
        point: the number of the leg, from 1, or the formula of the mixture.
        value: value of the knob; NaN for a mixture.
        made_of: ``"trained"``, or the formula of the mixture, for example ``"0.333*3 + 0.667*2"``.
        pairs: gradient pairs after which the model is available.
        model: the model; the same object for all candidates, overwritten by the next one.
    """

    point: str
    value: float
    made_of: str
    pairs: int
    model: I2IModel


def candidates(unmodified: I2IModel, legs: Sequence[Leg]) -> Iterator[Candidate]:
    """Yield the trained models of a sweep, then the mixtures.

    Args:
        unmodified: the model that the sweep started from; not changed.
        legs: legs of the sweep, in the order of training.
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
