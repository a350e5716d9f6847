"""The problems and optimizers of the noise suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import unlearn_ext as ux

from . import images, language, networks, toys
from .problem import Problem

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "quadratic, noise 0.1": partial(toys.quadratic, 0.1),
    "quadratic, noise 1": partial(toys.quadratic, 1.0),
    "logistic, bounded norm": toys.norm_bounded_logistic,
    "fairness gap": partial(networks.fairness, squared=False),
    "fairness gap squared": partial(networks.fairness, squared=True),
    "forget examples": networks.forget,
    "BatchNorm and dropout": partial(networks.forget, norm=True),
    "weight decay": partial(networks.forget, weight_decay=0.1),
    "cosine schedule": partial(networks.forget, cosine=True),
    "GPT-2, 0.4": partial(language.forget_sentences, 0.4),
    "GPT-2, 0.1": partial(language.forget_sentences, 0.1),
    "GPT-2, 0.02": partial(language.forget_sentences, 0.02),
    "VQ-GAN": images.forget_digits,
}
BATCHES = (4, 32, 256, 0)  # 0: all examples


def _made(name: str, problem: Problem) -> Any:
    return getattr(ux, name)(
        problem.params,
        lr=problem.lr[name],
        weight_decay=problem.weight_decay,
        control=ux.EpsilonGap(problem.epsilon),
    )


def _wrapped(problem: Problem) -> Any:
    inner = torch.optim.AdamW(problem.params, lr=problem.lr["EpsilonAdamW"], weight_decay=problem.weight_decay)
    return ux.EpsilonWrapper(inner, control=ux.EpsilonGap(problem.epsilon))


OPTIMIZERS: dict[str, Callable[[Problem], Any]] = {
    "EpsilonSGD": partial(_made, "EpsilonSGD"),
    "EpsilonAdamW": partial(_made, "EpsilonAdamW"),
    "wrapped AdamW": _wrapped,
}
