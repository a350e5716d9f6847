"""Replicas under DistributedDataParallel: two processes equal one process with the joined minibatch."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import (
    CONTROL,
    CONTROLS,
    OPTIMIZERS,
    alone,
    batches,
    forget_loss,
    network,
    retain_loss,
    share,
    train,
    whole,
)

import unlearn_ext as ux


def drift(results):
    """Return the largest difference between the first replica and another."""
    first, *others = (parameters for parameters, _ in results)
    return max((a - b).abs().max().item() for other in others for a, b in zip(first, other, strict=True))


def replicated(name, ddp_options, **options):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters(), **options)
    multipliers = train(DistributedDataParallel(model, **ddp_options), optimizer, share)
    return whole(model), multipliers


@pytest.mark.parametrize("bucket_view", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_equal_one_with_the_joined_batch(processes, name, bucket_view):
    results = processes.run(2, replicated, name, {"gradient_as_bucket_view": bucket_view})
    parameters, multipliers = alone(name)
    assert max(multipliers) > 0  # the constraint was active
    assert drift(results) == 0
    torch.testing.assert_close(results[0][0], parameters, rtol=1e-5, atol=1e-6)
    assert results[0][1] == results[1][1] == pytest.approx(multipliers, rel=1e-4)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("constraints", "decay"), [(1, 0.9), (3, 0.0), (3, 0.9)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_several_constraints_and_averages(processes, name, constraints, decay, size):
    options = {"control": CONTROLS[constraints], "constraint_grad_ema": decay}
    results = processes.run(size, replicated, name, {}, **options)
    parameters, multipliers = alone(name, **options)
    assert all(max(multipliers[i::constraints]) > 0 for i in range(constraints))  # each constraint was active
    assert drift(results) == 0
    for mine, lam in results:
        torch.testing.assert_close(mine, parameters, rtol=1e-5, atol=1e-6)
        assert lam == results[0][1] == pytest.approx(multipliers, rel=1e-4)


def test_without_averaging_f1_the_replicas_drift_apart(processes):
    assert drift(processes.run(2, replicated, "adamw", {}, process_group=None)) > 1e-3
    assert drift(processes.run(2, replicated, "adamw", {}, process_group="default")) == 0


def own_psi(stats):
    return 5 * (stats.constraint - 0.05)


def test_a_callable_control_sees_the_averaged_f1(processes):
    results = processes.run(2, replicated, "sgd", {}, control=own_psi)
    parameters, _ = alone("sgd", control=own_psi)
    assert drift(results) == 0
    torch.testing.assert_close(results[0][0], parameters, rtol=1e-5, atol=1e-6)


def alone_in_its_bucket():
    """Train one parameter that fills DDP's bucket, so that its gradient is as large as its storage."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(DistributedDataParallel(model, gradient_as_bucket_view=True), optimizer, share)
    return whole(model)


def test_a_gradient_that_fills_its_bucket_is_copied_too(processes):
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)
    train(model, OPTIMIZERS["sgd"](model.parameters()))
    torch.testing.assert_close(processes.run(2, alone_in_its_bucket)[0], whole(model), rtol=1e-5, atol=1e-6)


def accumulated(bucket_view):
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)

    def backward(loss, images):
        total = 0
        for index, micro in enumerate(images.split([3, 1])):
            with ddp.no_sync() if index == 0 else nullcontext():
                part = loss(ddp, micro) * len(micro) / len(images)
                part.backward()
            total += part.detach()
        return total

    for forget, retain in batches():
        optimizer.hold_constraint(backward(forget_loss, share(forget)))
        backward(retain_loss, share(retain))
        optimizer.step()
        optimizer.zero_grad()
    return whole(model), optimizer.stats.lam.item()


@pytest.mark.parametrize("bucket_view", [False, True])
def test_uneven_micro_batches_under_no_sync(processes, bucket_view):
    results = processes.run(2, accumulated, bucket_view)
    parameters, multipliers = alone("adamw")
    assert drift(results) == 0
    torch.testing.assert_close(results[0][0], parameters, rtol=1e-5, atol=1e-6)
    assert results[0][1] == pytest.approx(multipliers[-1], rel=1e-4)


def interleaved(bucket_view):
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
    for pair in batches():
        micro_batches = zip(*(share(images).split([3, 1]) for images in pair), strict=True)
        for index, (forget, retain) in enumerate(micro_batches):
            with ddp.no_sync() if index == 0 else nullcontext():
                weight = len(forget) / 4
                with optimizer.constraint() as hold:
                    part = forget_loss(ddp, forget) * weight
                    part.backward()
                    hold(part)
                (retain_loss(ddp, retain) * weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(model), optimizer.stats.lam.item()


@pytest.mark.parametrize("bucket_view", [False, True])
def test_interleaved_micro_batches_under_no_sync(processes, bucket_view):
    results = processes.run(2, interleaved, bucket_view)
    parameters, multipliers = alone("adamw")
    assert drift(results) == 0
    torch.testing.assert_close(results[0][0], parameters, rtol=1e-5, atol=1e-6)
    assert results[0][1] == pytest.approx(multipliers[-1], rel=1e-4)


def held_per_micro_batch():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    ddp = DistributedDataParallel(model)
    for forget, retain in batches():
        for micro in share(forget).split([3, 1]):
            part = forget_loss(ddp, micro) * len(micro) / 4
            part.backward()
            optimizer.hold_constraint(part)
        retain_loss(ddp, share(retain)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(model), []


def test_holding_every_micro_batch(processes):
    results = processes.run(2, held_per_micro_batch)
    torch.testing.assert_close(results[0][0], alone("sgd")[0], rtol=1e-5, atol=1e-6)


def subgroups():
    """Return the averaged f1; ranks 0 and 1 are replicas, as are ranks 2 and 3, and f1 is 1, 2, 3, 4."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    p = nn.Parameter(torch.ones(2))
    optimizer = ux.EpsilonSGD([p], control=CONTROL, process_group=pairs[dist.get_rank() // 2])
    p.sum().backward()
    optimizer.hold_constraint(torch.tensor(dist.get_rank() + 1.0))
    optimizer.step()
    return optimizer.stats.constraint.item()


def test_f1_is_averaged_over_the_given_group(processes):
    assert processes.run(4, subgroups) == [1.5, 1.5, 3.5, 3.5]


def one_is_nan_on_the_last_rank(control, bad):
    p = nn.Parameter(torch.ones(4))
    optimizer = OPTIMIZERS["adamw"]([p], control=control, constraint_grad_ema=0.9)
    for name in control if isinstance(control, dict) else [None]:
        p.sum().backward()
        last = dist.get_rank() == dist.get_world_size() - 1
        optimizer.hold_constraint(torch.tensor(float("nan") if last and name == bad else 1.0), name)
    p.sum().backward()
    optimizer.step()
    state = optimizer.state[p]
    untouched = p.tolist() == [1] * 4 and not any(value.any() for value in state.values())
    return optimizer.skipped_steps.item(), untouched


@pytest.mark.parametrize(("constraints", "bad"), [(1, None), (3, "along 1"), (3, "along 0")])
def test_one_bad_value_skips_the_step_everywhere(processes, constraints, bad):
    assert processes.run(4, one_is_nan_on_the_last_rank, CONTROLS[constraints], bad) == [(1, True)] * 4


@pytest.mark.parametrize("wrong", ["all", -100, 3.5])
def test_an_invalid_process_group(wrong):
    with pytest.raises(ValueError, match="must be a process group that this process is a member of"):
        ux.EpsilonSGD([nn.Parameter(torch.ones(1))], control=CONTROL, process_group=wrong)
