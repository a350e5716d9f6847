"""``EpsilonProjection``: what it writes to ``p.grad``, and which parameters it accepts."""

import pytest
import torch
from steps import PATHS
from torch import nn

import unlearn_ext as ux

G1, G2 = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([-1.0, 2.0, 0.5])  # ‖g1‖² = 25, ⟨g1, g2⟩ = -1


def parameters(count=1):
    return [nn.Parameter(torch.zeros(3)) for _ in range(count)]


def projected(params, held, grads, f1=1.0, **options):
    projection = ux.EpsilonProjection(params, **{"control": ux.EpsilonGap(0.3, rate=0.1), **options})
    for param, grad in zip(projection.params, held, strict=True):
        param.grad = None if grad is None else grad.clone()
    projection.hold_constraint(torch.tensor(f1))
    for param, grad in zip(projection.params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()
    projection.project_()
    return projection


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("lr", [1.0, 0.05])
def test_psi_is_rate_times_gap_over_the_learning_rate(lr, fused):
    (param,) = parameters()
    stats = projected([param], [G1], [G2], lr=lr, fused=fused).stats
    psi = 0.1 * (1.0 - 0.3) / lr
    assert stats.psi.item() == pytest.approx(psi, rel=1e-6)
    assert stats.lam.item() == pytest.approx((psi + 1) / 25, rel=1e-6)
    torch.testing.assert_close(param.grad, G2 + (psi + 1) / 25 * G1)
    assert torch.dot(param.grad, G1).item() == pytest.approx(psi, rel=1e-5)


@pytest.mark.parametrize("fused", PATHS)
def test_every_parameter_has_its_share_of_one_projection(fused):
    both, retained, forgotten, neither = params = parameters(4)
    lam = projected(params, [G1, None, G1, None], [G2, G2, None, None], fused=fused).stats.lam.item()
    assert lam == pytest.approx((0.1 * 0.7 + 1) / 50, rel=1e-6)
    torch.testing.assert_close(both.grad, G2 + lam * G1)
    assert torch.equal(retained.grad, G2)
    torch.testing.assert_close(forgotten.grad, lam * G1)
    assert neither.grad is None


@pytest.mark.parametrize("fused", PATHS)
def test_a_direction_that_forgets_enough_is_left_alone(fused):
    (param,) = parameters()
    assert projected([param], [G1], [G1], fused=fused).stats.lam.item() == 0
    assert torch.equal(param.grad, G1)


def test_with_nothing_held_nothing_changes():
    (param,) = parameters()
    projection = ux.EpsilonProjection([param], ux.EpsilonGap(0.3))
    projection.project_()
    assert param.grad is None
    param.grad = G2.clone()
    projection.project_()
    assert torch.equal(param.grad, G2)


@pytest.mark.parametrize("fused", PATHS)
def test_nothing_is_written_where_anything_is_not_finite(fused):
    params = parameters(2)
    projection = projected(params, [G1, G1], [G2, G2 * float("inf")], fused=fused)
    assert projection.stats.skipped.item()
    assert torch.equal(params[0].grad, G2)


@pytest.mark.parametrize("fused", PATHS)
def test_bounds(fused):
    (param,) = parameters()
    stats = projected([param], [G1], [G2], lambda_max=0.01, max_norm=0.5, fused=fused).stats
    assert stats.lam.item() == 0.01
    g = G2 + 0.01 * G1
    torch.testing.assert_close(param.grad, 0.5 * g / g.norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "given",
    [
        lambda a, b: iter([a, b]),
        lambda a, b: [{"params": [a], "lr": 3.0}, {"params": iter([b])}],
        lambda a, b: [{"params": a}, {"params": b}],
        lambda a, b: [("a", a), ("b", b)],
    ],
    ids=["an iterator", "groups", "groups of one tensor", "names"],
)
def test_parameters_as_torch_takes_them(given):
    a, b = parameters(2)
    projected(given(a, b), [G1, G1], [G2, G2])
    torch.testing.assert_close(a.grad, G2 + (0.1 * 0.7 + 2) / 50 * G1)
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("given", [[3], torch.ones(3, 2), []], ids=["a number", "a tensor", "nothing"])
def test_what_torch_would_not_take(given):
    with pytest.raises((TypeError, ValueError), match=r"int|iterable of Tensors|empty parameter list"):
        ux.EpsilonProjection(given, ux.GradientNorm())


def test_a_negative_learning_rate():
    with pytest.raises(ValueError, match=r"EpsilonProjection: lr=-1\.0 must not be negative"):
        ux.EpsilonProjection(parameters(), ux.GradientNorm(), lr=-1.0)
