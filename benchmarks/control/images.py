"""Unlearning two digits in the demo's VQ-GAN."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

from unlearn_ext.demo import TASK, prepare
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings

from .problem import Problem

IMAGES = 64


@cache
def _prepared() -> tuple[Any, Any]:
    return prepare("vqgan")


def forget_digits(epsilon: float = 0.3) -> Problem:
    """Return the VQ-GAN's encoder and the objectives f1 and f2 over some images of each set."""
    model, images = _prepared()
    model = copy.deepcopy(model)
    objectives = Objectives.freeze(model, images.forget[:IMAGES], images.retain[:IMAGES], TASK, settings=Settings())
    return Problem(
        model.encoder_parameters(),
        lambda i: objectives.f1(model.encode, objectives.forget.batch(i)),
        lambda i: objectives.f2(model.encode, objectives.retain.batch(i)),
        IMAGES,
        epsilon,
        {"EpsilonSGD": 0.05, "EpsilonAdamW": 1e-3},
        steps=150,
        full=lambda: torch.tensor(objectives.evaluate_f1(model.encode)),
    )
