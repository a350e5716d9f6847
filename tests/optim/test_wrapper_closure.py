"""A closure of a wrapped optimizer may hold the constraint."""

import torch
from torch import nn

import unlearn_ext as ux


def run(held_inside):
    theta = nn.Parameter(torch.ones(3))
    optimizer = ux.EpsilonWrapper(torch.optim.SGD([theta], lr=0.1), control=ux.EpsilonGap(0.1))

    def hold():
        optimizer.zero_grad()
        c = theta.square().sum()
        c.backward()
        optimizer.hold_constraint(c)

    def closure():
        if held_inside:
            hold()
        loss = (theta - 2).square().sum()
        loss.backward()
        return loss

    for _ in range(4):
        if not held_inside:
            hold()
        assert optimizer.step(closure) is not None
        assert optimizer.stats.lam.item() > 0
    return theta


def test_it_equals_holding_before_the_step():
    assert torch.equal(run(held_inside=True), run(held_inside=False))
