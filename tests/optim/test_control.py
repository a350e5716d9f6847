"""ψ of every control function, through the reference and the kernel's solver."""

import math

import pytest
import torch
from steps import PATHS
from torch import nn

import unlearn_ext as ux


def psi_of(control, f1, g1=2.0, lr=0.1, fused=False, steps=1):
    p = nn.Parameter(torch.zeros(3))
    opt = ux.EpsilonSGD([p], lr=lr, control=control, fused=fused)
    for _ in range(steps):
        p.grad = torch.full((3,), g1)
        opt.hold_constraint(torch.tensor(f1))
        opt.step()
    return opt.stats.psi.item()


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize(
    ("control", "f1", "psi"),
    [
        (ux.EpsilonGap(0.3), 1.3, 0.1 / 0.1 * 1.0),
        (ux.EpsilonGap(0.3, rate=0.5), 0.1, 0.5 / 0.1 * -0.2),
        (ux.EpsilonGap(0.3, alpha=1), 1.3, 1.0),  # eq. 6
        (ux.EpsilonGap(0.5, alpha=2, delta=2), 0.2, -2 * 0.09),  # the sign is kept
        (ux.EpsilonGap(0.5, alpha=2, delta=0.5), 0.75, 2 * 0.5),
        (ux.EpsilonGap(0.0, alpha=100, cap=0.5), 9.0, 0.5 * 12),
        (ux.GradientNorm(0.3), 9.0, 0.3 * 12),
        (ux.GradientNorm(0.3, delta=1), 9.0, 0.3 * math.sqrt(12)),
        (ux.GradientNorm(3, cap=0.5), 9.0, 0.5 * 12),
    ],
)
def test_psi(control, f1, psi, fused):
    assert psi_of(control, f1, fused=fused) == pytest.approx(psi, rel=1e-6)


@pytest.mark.parametrize("fused", PATHS)
def test_integral_sums_near_the_target_only_and_is_bounded(fused):
    control = ux.EpsilonGap(0.4, alpha=1, integral=0.2)
    assert psi_of(control, 1.0, fused=fused, steps=50) == pytest.approx(0.6, rel=1e-6)  # far from ε: nothing is summed
    assert psi_of(control, 0.5, fused=fused, steps=3) == pytest.approx(0.1 + 0.2 * 0.3, rel=1e-6)
    assert psi_of(control, 0.5, fused=fused, steps=90) == pytest.approx(0.1 + 0.4, rel=1e-6)  # bounded by ε


@pytest.mark.parametrize("fused", PATHS)
def test_epsilon_may_change_between_steps(fused):
    p = nn.Parameter(torch.zeros(3))
    opt = ux.EpsilonSGD([p], lr=0.1, control=ux.EpsilonGap(0.3, alpha=1), fused=fused)
    for epsilon in (0.3, 0.1):
        opt.control.epsilon = epsilon
        p.grad = torch.ones(3)
        opt.hold_constraint(torch.tensor(1.0))
        opt.step()
        assert opt.stats.psi.item() == pytest.approx(1 - epsilon)


@pytest.mark.parametrize(
    ("control", "name"),
    [
        (ux.EpsilonGap(math.nan), "epsilon"),
        (ux.EpsilonGap(0.1, rate=2), "rate"),
        (ux.EpsilonGap(0.1, delta=0), "delta"),
        (ux.EpsilonGap(0.1, alpha=-1), "alpha"),
        (ux.EpsilonGap(0.1, integral=-1), "integral"),
        (ux.EpsilonGap(0.1, cap=0), "cap"),
        (ux.GradientNorm(alpha=0), "alpha"),
    ],
)
def test_values_without_meaning_are_refused(control, name):
    with pytest.raises(ValueError, match=name):
        psi_of(control, 1.0)
