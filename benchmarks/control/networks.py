"""Small networks: fairness of a classifier, and forgetting examples under BatchNorm, dropout, decay and a schedule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .problem import Problem

EXAMPLES = 2048
LR = {"EpsilonSGD": 0.1, "EpsilonAdamW": 2e-3}


def fit(module: nn.Module, loss: Callable[[Tensor], Tensor], examples: int, steps: int, lr: float = 3e-3) -> None:
    """Train a module with Adam and minibatches of 64."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    for _ in range(steps):
        loss(torch.randint(examples, (64,), generator=generator)).backward()
        optimizer.step()
        optimizer.zero_grad()


@cache
def _people() -> tuple[Tensor, Tensor, Tensor]:
    """Return features, group and label, of which the group shifts both others."""
    generator = torch.Generator().manual_seed(0)
    group = (torch.rand(EXAMPLES, generator=generator) < 0.4).float()
    x = torch.randn(EXAMPLES, 10, generator=generator)
    x[:, 0] += 1.2 * group
    label = x[:, 0] + 0.8 * x[:, 1] + 0.3 * torch.randn(EXAMPLES, generator=generator) > 0.6
    return x, group, label.float()


@cache
def _classifier() -> nn.Module:
    x, _, label = _people()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
    fit(module, lambda i: F.binary_cross_entropy_with_logits(module(x[i])[:, 0], label[i]), EXAMPLES, 300)
    return module


def fairness(squared: bool) -> Problem:
    """Return a classifier whose groups' mean scores may differ by 0.1.

    Args:
        squared: bound the square of the gap instead, by 0.01. The square of a minibatch's gap is larger in the mean
            than the square of the gap, so no control can meet ε from minibatches.
    """
    x, group, label = _people()
    module = copy.deepcopy(_classifier())
    share = group.mean()
    weight = group / share - (1 - group) / (1 - share)  # its mean is 0, and Σ weight·score / N is the groups' gap

    def gap(i: Tensor) -> Tensor:
        return (weight[i] * (module(x[i])[:, 0].sigmoid() - 0.5)).mean()

    return Problem(
        list(module.parameters()),
        (lambda i: gap(i).square()) if squared else gap,
        lambda i: F.binary_cross_entropy_with_logits(module(x[i])[:, 0], label[i]),
        EXAMPLES,
        0.01 if squared else 0.1,
        LR,
        biased="the square of a minibatch's gap is larger in the mean" if squared else "",
    )


@cache
def _blobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(EXAMPLES) % 4
    centres = 2.0 * torch.randn(4, 16, generator=generator)
    return centres[label] * 0.5 + torch.randn(EXAMPLES, 16, generator=generator), label


@cache
def _pretrained(norm: bool) -> nn.Module:
    x, label = _blobs()
    torch.manual_seed(0)
    extra = [nn.BatchNorm1d(64)] if norm else []
    drop = [nn.Dropout(0.2)] if norm else []
    module = nn.Sequential(nn.Linear(16, 64), *extra, nn.ReLU(), *drop, nn.Linear(64, 4))
    fit(module, lambda i: F.cross_entropy(module(x[i]), label[i]), EXAMPLES, 300)
    return module


def forget(norm: bool = False, weight_decay: float = 0.0, cosine: bool = False) -> Problem:
    """Return a classifier that is to give the labels of a quarter of the examples a mean probability of 0.4.

    The objective is the loss of the other examples, which are of the same classes, so it pulls against the constraint.

    Args:
        norm: use BatchNorm and dropout; the constraint is evaluated in evaluation mode, the objective in training mode.
        weight_decay: weight decay.
        cosine: whether the learning rate falls to 0.
    """
    x, label = _blobs()
    forgotten, kept = torch.arange(EXAMPLES).split([EXAMPLES // 4, EXAMPLES - EXAMPLES // 4])
    module = copy.deepcopy(_pretrained(norm))

    def constraint(i: Tensor) -> Tensor:
        module.eval()
        rows = forgotten[i]
        return module(x[rows]).softmax(1).gather(1, label[rows, None]).mean()

    def objective(i: Tensor) -> Tensor:
        module.train()
        return F.cross_entropy(module(x[kept[i]]), label[kept[i]])

    return Problem(
        list(module.parameters()),
        constraint,
        objective,
        len(forgotten),
        0.4,
        LR,
        steps=1000,
        weight_decay=weight_decay,
        cosine=cosine,
    )
