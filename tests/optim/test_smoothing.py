"""Moving averages of f1 and g1: bias-corrected, and unchanged by skipped steps."""

import pytest
import torch
from torch import nn

import unlearn_ext as ux


def step(optimizer: ux.EpsilonSGD, p: nn.Parameter, f1: float, g1: list[float]) -> None:
    p.grad = torch.tensor(g1)
    optimizer.hold_constraint(torch.tensor(f1))
    p.grad = torch.zeros_like(p)
    optimizer.step()


def make(**decays: float) -> tuple[nn.Parameter, ux.EpsilonSGD]:
    p = nn.Parameter(torch.zeros(2))
    return p, ux.EpsilonSGD([p], lr=1.0, control=ux.EpsilonGap(0.0, rate=0.5), **decays)


def test_the_average_of_f1_is_bias_corrected():
    p, optimizer = make(constraint_ema=0.9)
    values = [2.0, 4.0, 1.0]
    for value in values:
        step(optimizer, p, value, [1.0, 0.0])
    weights = [0.9 ** (len(values) - 1 - i) for i in range(len(values))]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert optimizer.stats.constraint.item() == pytest.approx(expected)


def test_the_projection_uses_the_average_of_g1():
    p, optimizer = make(constraint_grad_ema=0.5)
    step(optimizer, p, 1.0, [2.0, 0.0])
    step(optimizer, p, 1.0, [0.0, 2.0])
    average = torch.tensor([2.0 * 0.5, 2.0]) / 1.5
    assert optimizer.stats.sq_constraint.item() == pytest.approx(average.square().sum().item())
    assert optimizer.stats.constraint.item() == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_skipped_step_leaves_no_trace(bad):
    p, optimizer = make(constraint_ema=0.9, constraint_grad_ema=0.9)
    q, undisturbed = make(constraint_ema=0.9, constraint_grad_ema=0.9)
    for index in range(5):
        for parameter, mine in ((p, optimizer), (q, undisturbed)):
            step(mine, parameter, 1.0 + index, [1.0, float(index)])
        step(optimizer, p, 1.0, [bad, 0.0])
        step(optimizer, p, bad, [1.0, 0.0])
    assert optimizer.skipped_steps.item() == 10
    assert torch.equal(p, q)


def test_without_decay_nothing_is_kept():
    p, optimizer = make()
    step(optimizer, p, 1.0, [1.0, 1.0])
    assert not optimizer.state[p]


@pytest.mark.parametrize("name", ["constraint_ema", "constraint_grad_ema"])
@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decays_out_of_range(name, decay):
    with pytest.raises(ValueError, match=name):
        make(**{name: decay})
