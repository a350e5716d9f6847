"""``optimizer.constraint``: alternating backward passes give the step that holding all constraints first gives."""

import copy

import pytest
import torch
from torch import nn

import unlearn_ext as ux

OPTIMIZERS = {
    "sgd": lambda p, control: ux.EpsilonSGD(p, lr=0.05, momentum=0.9, control=control),
    "adamw": lambda p, control: ux.EpsilonAdamW(p, lr=1e-2, control=control),
    "wrapper": lambda p, control: ux.EpsilonWrapper(torch.optim.AdamW(p, lr=1e-2), control),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS)
MICRO_BATCHES = 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


def batch(index: int, size: int = 12) -> torch.Tensor:
    return torch.randn(size, 5, generator=torch.Generator().manual_seed(index))


def constraint(net, images, name=None) -> torch.Tensor:
    outputs = net(images)
    return (outputs[:, 1] if name == "second" else outputs[:, 0] if name else outputs).square().mean()


def objective(net, images) -> torch.Tensor:
    return (net(images) - 2 * images[:, :2]).square().mean()


def pair(make, constraints=1):
    net = network()
    control = {name: ux.EpsilonGap(0.02) for name in ("first", "second")} if constraints == 2 else ux.EpsilonGap(0.02)
    return net, OPTIMIZERS[make](net.parameters(), control)


def names_of(optimizer) -> list:
    return list(optimizer.control) if isinstance(optimizer.control, dict) else [None]


def parts(images):
    """Yield micro-batches and their share of the batch."""
    for part in images.tensor_split(MICRO_BATCHES):
        yield part, len(part) / len(images)


def finish(optimizer, scaler=None) -> None:
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad()


def first_all_constraints(net, optimizer, index) -> None:
    """Take the step that an interleaved one must equal."""
    for name in names_of(optimizer):
        value = constraint(net, batch(index), name)
        value.backward()
        optimizer.hold_constraint(value, name)
    objective(net, batch(index + 1000)).backward()
    finish(optimizer)


def interleaved(net, optimizer, index, scaler=None, objective_first=False, spoil=None) -> None:
    """Take a step in which every micro-batch has the backward passes of all losses; ``spoil`` one of the losses."""

    def backward(loss, kind, number):
        (scaler.scale(loss) if scaler else loss).backward()
        if (kind, number) == spoil:
            net[2].weight.grad[0, 3] = float("inf")

    pairs = zip(parts(batch(index)), parts(batch(index + 1000)), strict=True)
    for number, ((forget, share), (retain, retain_share)) in enumerate(pairs):
        if objective_first:
            backward(objective(net, retain) * retain_share, "objective", number)
        for name in names_of(optimizer):
            with optimizer.constraint(name, scaler=scaler) as hold:
                value = constraint(net, forget, name) * share
                backward(value, "constraint", number)
                hold(value)
        if not objective_first:
            backward(objective(net, retain) * retain_share, "objective", number)
    finish(optimizer, scaler)


def stats_of(optimizer) -> list:
    return list(optimizer.stats.values()) if isinstance(optimizer.control, dict) else [optimizer.stats]


def assert_close(first, second) -> None:
    (net, optimizer), (other, plain) = first, second
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=2e-5, atol=1e-6)
    for mine, its in zip(stats_of(optimizer), stats_of(plain), strict=True):
        torch.testing.assert_close(mine.constraint, its.constraint, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(mine.lam, its.lam, rtol=1e-3, atol=1e-6)


@each_optimizer
@pytest.mark.parametrize("objective_first", [False, True])
@pytest.mark.parametrize("constraints", [1, 2])
def test_it_equals_holding_all_constraints_first(make, constraints, objective_first):
    mine, its = pair(make, constraints), pair(make, constraints)
    for index in range(12):
        interleaved(*mine, index, objective_first=objective_first)
        first_all_constraints(*its, index)
    assert all(stats.lam.item() > 0 for stats in stats_of(its[1]))
    assert_close(mine, its)


@each_optimizer
@pytest.mark.parametrize("constraints", [1, 2])
def test_scaled_training_equals_unscaled(make, constraints):
    mine, its = pair(make, constraints), pair(make, constraints)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index in range(8):
        interleaved(*mine, index, scaler=scaler)
        first_all_constraints(*its, index)
    assert mine[1].skipped_steps.item() == 0
    assert_close(mine, its)


@each_optimizer
@pytest.mark.parametrize("constraints", [1, 2])
@pytest.mark.parametrize("objective_first", [False, True])
@pytest.mark.parametrize("number", range(MICRO_BATCHES))
@pytest.mark.parametrize("kind", ["constraint", "objective"])
def test_an_overflow_in_one_micro_batch_skips_the_step_and_leaves_no_trace(
    make, constraints, objective_first, number, kind
):
    mine, its = pair(make, constraints), pair(make, constraints)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index in range(4):
        if index == 2:
            before = copy.deepcopy(list(mine[0].parameters()))
            interleaved(*mine, index, scaler, objective_first, spoil=(kind, number))
            assert all(map(torch.equal, before, mine[0].parameters()))
            assert scaler.get_scale() == 512.0
            assert mine[1].skipped_steps.item() == 1
        interleaved(*mine, index, scaler, objective_first)
        first_all_constraints(*its, index)
    assert mine[1].skipped_steps.item() == 1
    assert_close(mine, its)


def fail_inside(net, optimizer, after_backward) -> None:
    with optimizer.constraint() as hold:
        if after_backward:
            value = constraint(net, batch(5))
            value.backward()
            hold(value)
        raise ZeroDivisionError


@each_optimizer
@pytest.mark.parametrize("after_backward", [False, True])
def test_an_exception_leaves_gradients_and_what_was_held(make, after_backward):
    mine, its = pair(make), pair(make)
    for net, optimizer in (mine, its):
        for _ in range(2):
            with optimizer.constraint() as hold:
                value = constraint(net, batch(0)) / 2
                value.backward()
                hold(value)
            (objective(net, batch(1000)) / 2).backward()
    net, optimizer = mine
    grads = [p.grad.clone() for p in net.parameters()]
    with pytest.raises(ZeroDivisionError):
        fail_inside(net, optimizer, after_backward)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    for _, each in (mine, its):
        finish(each)
    assert all(map(torch.equal, mine[0].parameters(), its[0].parameters()))
    assert mine[1].stats.constraint == its[1].stats.constraint


def test_an_exception_in_the_first_block_holds_nothing():
    net, optimizer = pair("sgd")
    with pytest.raises(ZeroDivisionError):
        fail_inside(net, optimizer, after_backward=True)
    assert all(p.grad is None for p in net.parameters())
    objective(net, batch(0)).backward()
    optimizer.step()
    assert optimizer.stats.lam.item() == optimizer.stats.sq_constraint.item() == 0


def test_a_block_that_does_not_call_hold_raises():
    net, optimizer = pair("sgd")
    objective(net, batch(0)).backward()
    grads = [p.grad.clone() for p in net.parameters()]
    message = "call the function that `with` returns, with the value of c"
    with pytest.raises(RuntimeError, match=message), optimizer.constraint():
        constraint(net, batch(0)).backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))


def test_a_block_without_a_backward_pass_raises():
    _, optimizer = pair("sgd")
    with (
        pytest.raises(RuntimeError, match=r"call backward\(\) of the constraint first"),
        optimizer.constraint() as hold,
    ):
        hold(torch.tensor(1.0))


@pytest.mark.parametrize("name", [None, "third"])
def test_a_name_that_does_not_exist(name):
    net, optimizer = pair("sgd", constraints=2)
    objective(net, batch(0)).backward()
    with pytest.raises(ValueError, match=r"first.*second"), optimizer.constraint(name):
        pass
    assert all(p.grad is not None for p in net.parameters())


def test_several_values_in_one_block_add_up():
    mine, its = pair("adamw"), pair("adamw")
    net, optimizer = mine
    with optimizer.constraint() as hold:
        for part, share in parts(batch(0)):
            value = constraint(net, part) * share
            value.backward()
            hold(value)
    objective(net, batch(1000)).backward()
    finish(optimizer)
    first_all_constraints(*its, 0)
    assert_close(mine, its)


def test_gradients_that_are_views_of_a_buffer_are_not_overwritten():
    """As under DistributedDataParallel with ``gradient_as_bucket_view``: a new backward pass reuses the memory."""
    net, optimizer = pair("sgd")
    params = list(net.parameters())
    flat = torch.zeros(sum(p.numel() for p in params))

    def fill(value):
        flat.fill_(value)
        pieces = flat.split([p.numel() for p in params])
        for param, piece in zip(params, pieces, strict=True):
            param.grad = piece.view_as(param)

    fill(3.0)  # the objective's
    with optimizer.constraint() as hold:
        fill(5.0)
        hold(torch.tensor(1.0))
    assert all((p.grad == 3.0).all() for p in params)
    flat.zero_()
    assert all((p.grad == 3.0).all() for p in params)
    optimizer.step()
    assert optimizer.stats.sq_constraint.item() == pytest.approx(25.0 * flat.numel())
    assert optimizer.stats.sq_direction.item() == pytest.approx(9.0 * flat.numel())
