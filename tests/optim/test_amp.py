"""GradScaler with both gradients scaled, autocast, and gradient accumulation for f1 and f2."""

import pytest
import torch
from torch import nn

import unlearn_ext as ux

OPTIMIZERS = [ux.EpsilonSGD, ux.EpsilonAdamW]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def f1_of(net: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return net(inputs).square().mean()


def f2_of(net: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return (net(inputs) - inputs.sum(1, keepdim=True)).square().mean()


def batch(index: int, size: int = 16) -> torch.Tensor:
    return torch.randn(size, 5, generator=torch.Generator().manual_seed(index))


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-6)


def scaled_step(net, optimizer, scaler, index, *, unscale_first=False, spoil=None):
    f1 = f1_of(net, batch(index))
    scaler.scale(f1).backward()
    if spoil == "g1":
        net[2].weight.grad[0, 3] = float("inf")
    optimizer.hold_constraint(f1, scaler=scaler)
    scaler.scale(f2_of(net, batch(index + 100))).backward()
    if spoil == "g2":
        net[0].weight.grad[0, 3] = float("inf")
    if unscale_first:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [None, False])
def test_scaled_training_equals_unscaled(cls, unscale_first, fused):
    scaled, plain = model(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with_scaler = cls(scaled.parameters(), lr=1e-2, control=ux.EpsilonGap(0.05), fused=fused)
    without = cls(plain.parameters(), lr=1e-2, control=ux.EpsilonGap(0.05), fused=fused)
    for index in range(20):
        scaled_step(scaled, with_scaler, scaler, index, unscale_first=unscale_first)
        f1 = f1_of(plain, batch(index))
        f1.backward()
        without.hold_constraint(f1)
        f2_of(plain, batch(index + 100)).backward()
        without.step()
        without.zero_grad()
    assert_same(scaled, plain)
    assert with_scaler.stats.lam.item() == pytest.approx(without.stats.lam.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("cls", "steps", "sq_constraint", "sq_direction", "dot"),
    [
        (ux.EpsilonSGD, [-3, 0, -3, -3], 6, 9 * 6, 3 * 4),
        (ux.EpsilonAdamW, [-3 / 10**0.5, 0, -1, -3 / 10**0.5], 2 + 4 / 10**0.5, 6 + 36 / 10**0.5, 12 / 10**0.5),
    ],
)
def test_gradients_are_unscaled_where_some_are_missing_and_some_are_half(cls, steps, sq_constraint, sq_direction, dot):
    """Under AdamW the metric of a first step is √(∇f1² + ∇f2²): √10, 1 and 3."""
    both, f1_alone, f2_alone, half = params = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    half.data = half.data.bfloat16()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = cls(params, lr=1.0, control=ux.EpsilonGap(0.5, alpha=1e-9))
    f1 = sum((p.float() + 1).sum() for p in (both, f1_alone, half))
    scaler.scale(f1).backward()
    optimizer.hold_constraint(f1, scaler=scaler)
    scaler.scale(sum(p.float().sum() * 3 for p in (both, f2_alone, half))).backward()
    scaler.step(optimizer)
    stats = optimizer.stats
    assert stats.sq_constraint.item() == pytest.approx(sq_constraint, rel=1e-5)
    assert stats.sq_direction.item() == pytest.approx(sq_direction, rel=1e-5)
    assert stats.dot.item() == pytest.approx(dot, rel=1e-5)
    for param, step in zip(params, steps, strict=True):
        torch.testing.assert_close(param.data, torch.full_like(param, step))
    assert optimizer.skipped_steps.item() == 0


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("spoil", ["g1", "g2"])
def test_an_overflow_on_either_side_skips_and_backs_off(cls, spoil):
    net, before = model(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = cls(net.parameters(), lr=1e-2, control=ux.EpsilonGap(0.05))
    scaled_step(net, optimizer, scaler, 0, spoil=spoil)
    assert_same(net, before)
    assert scaler.get_scale() == 512.0
    assert optimizer.skipped_steps.item() == 1
    scaled_step(net, optimizer, scaler, 1)  # the bad step left no trace
    assert optimizer.skipped_steps.item() == 1
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert not torch.equal(net[0].weight, before[0].weight)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_later_micro_batch_without_a_gradient_adds_its_value_alone(cls):
    net = model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = cls(net.parameters(), lr=1e-2, control=ux.EpsilonGap(0.05))
    f1 = f1_of(net, batch(0))
    scaler.scale(f1).backward()
    optimizer.hold_constraint(f1, scaler=scaler)
    optimizer.zero_grad()
    optimizer.hold_constraint(torch.tensor(2.0), scaler=scaler)
    scaler.scale(f2_of(net, batch(1))).backward()
    scaler.step(optimizer)
    assert optimizer.stats.constraint.item() == pytest.approx(f1.item() + 2.0, rel=1e-6)
    assert optimizer.skipped_steps.item() == 0


def test_a_constraint_held_without_the_scaler_is_refused():
    net = model()
    scaler = torch.amp.GradScaler("cpu")
    optimizer = ux.EpsilonSGD(net.parameters(), control=ux.EpsilonGap(0.05))
    f1 = f1_of(net, batch(0))
    f1.backward()
    optimizer.hold_constraint(f1)
    scaler.scale(f2_of(net, batch(1))).backward()
    with pytest.raises(RuntimeError, match=r"hold_constraint\(value, scaler=scaler\)"):
        scaler.step(optimizer)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_autocast_reaches_the_same_f1_as_float32(cls):
    reached = []
    for enabled in (False, True):
        net = model()
        optimizer = cls(net.parameters(), lr=1e-2, control=ux.EpsilonGap(0.05))
        for index in range(200):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                f1 = f1_of(net, batch(0, 64))
            f1.backward()
            optimizer.hold_constraint(f1)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                f2 = f2_of(net, batch(index))
            f2.backward()
            optimizer.step()
            optimizer.zero_grad()
        reached.append(f1_of(net, batch(0, 64)).item())
    assert reached[1] == pytest.approx(reached[0], rel=0.02)
    assert reached[1] < 0.06


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("parts", [(1, 1), (4, 1), (1, 3), (5, 2)])
def test_any_number_of_micro_batches_equals_the_whole_batch(cls, parts):
    whole, split = model(), model()
    optimizers = [cls(net.parameters(), lr=1e-2, control=ux.EpsilonGap(0.05)) for net in (whole, split)]
    for index in range(10):
        forget, retain = batch(index, 19), batch(index + 100, 17)
        for net, optimizer, (forget_parts, retain_parts) in zip(
            (whole, split), optimizers, ((1, 1), parts), strict=True
        ):
            for part in forget.tensor_split(forget_parts):  # uneven parts of 19 rows
                f1 = f1_of(net, part) * len(part) / len(forget)
                f1.backward()
                optimizer.hold_constraint(f1)
            for part in retain.tensor_split(retain_parts):
                (f2_of(net, part) * len(part) / len(retain)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(split, whole)
    assert optimizers[1].stats.constraint.item() == pytest.approx(optimizers[0].stats.constraint.item(), rel=1e-4)
