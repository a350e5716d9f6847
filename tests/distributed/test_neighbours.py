"""Every process moves to the neighbour of one process with the joined minibatch, whatever is replicated or sharded."""

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import OPTIMIZERS, batches, divide, forget_loss, network, retain_loss, share, whole

import unlearn_ext as ux

RHO = 0.3
MESHES = [(2,), (1, 2), (2, 1), (2, 2)]  # the last replicates every shard


def train_sharply(model, optimizer, share=lambda x: x):
    """Train with f1 at the neighbour; return the neighbour of the last step, the parameters, and λ of every step."""
    multipliers = []
    for forget, retain in batches():
        forget_loss(model, share(forget)).backward()
        with ux.sharpness(model.parameters(), RHO):
            neighbour = whole(model)
            f1 = forget_loss(model, share(forget))
            f1.backward()
        optimizer.hold_constraint(f1)
        retain_loss(model, share(retain)).backward()
        optimizer.step()
        optimizer.zero_grad()
        multipliers.append(optimizer.stats.lam.item())
    return neighbour, whole(model), multipliers


def alone(name):
    model = network()
    return train_sharply(model, OPTIMIZERS[name](model.parameters()))


def replicated(name, bucket_view):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    return train_sharply(DistributedDataParallel(model, gradient_as_bucket_view=bucket_view), optimizer, share)


def sharded(name, mesh_shape):
    model = divide(network(), mesh_shape)
    return train_sharply(model, OPTIMIZERS[name](model.parameters()), share)


def assert_equal_to_one_process(results, name):
    neighbour, parameters, multipliers = alone(name)
    assert max(multipliers) > 0  # the constraint was active
    for result in results:
        torch.testing.assert_close(result[0], neighbour, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result[1], parameters, rtol=1e-5, atol=1e-6)
        assert result[2] == pytest.approx(multipliers, rel=1e-4)
        for mine, first in zip((*result[0], *result[1]), (*results[0][0], *results[0][1]), strict=True):
            assert torch.equal(mine, first)


@pytest.mark.parametrize("bucket_view", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replicas_equal_one_process(processes, name, bucket_view):
    assert_equal_to_one_process(processes.run(2, replicated, name, bucket_view), name)


@pytest.mark.parametrize("mesh_shape", MESHES)
def test_shards_equal_one_process(processes, mesh_shape):
    size = torch.Size(mesh_shape).numel()
    assert_equal_to_one_process(processes.run(size, sharded, "adamw", mesh_shape), "adamw")


def of_several_placements():
    """Return how far plain parameters and DTensors of several placements move, and whether they return bit for bit."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2))
    placements = [None, (Shard(0), Shard(1)), (Replicate(), Shard(0)), (Shard(1), Replicate()), (Replicate(),) * 2]
    generator = torch.Generator().manual_seed(0)
    params, grads = [], []
    for placement in placements:
        value, grad = torch.randn(2, 5, 3, generator=generator)
        grads.append(grad)
        if placement is not None:
            value, grad = (distribute_tensor(tensor, mesh, placement) for tensor in (value, grad))
        params.append(nn.Parameter(value))
        params[-1].grad = grad

    def full():
        return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in params]

    before = full()
    with ux.sharpness(params, RHO):
        moved = full()
        params[0].grad = torch.zeros_like(params[0])
    exact = torch.stack(grads).double()
    expected = (torch.stack(before).double() + RHO * exact / exact.norm()).float()
    return (torch.stack(moved) - expected).abs().max().item(), all(map(torch.equal, before, full()))


def test_every_placement_counts_once_in_the_norm(processes):
    for error, restored in processes.run(4, of_several_placements):
        assert error < 1e-6
        assert restored


def with_a_bad_shard():
    """Put a NaN into the shard of the second process; return whether each process's step was skipped."""
    model = divide(network(), (2,))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    before = whole(model)
    forget, retain = next(batches())
    forget_loss(model, share(forget)).backward()
    if dist.get_rank() == 1:
        next(model.parameters()).grad.to_local()[0, 0] = float("nan")
    with ux.sharpness(model.parameters(), RHO):
        f1 = forget_loss(model, share(forget))
        f1.backward()
    optimizer.hold_constraint(f1)
    retain_loss(model, share(retain)).backward()
    optimizer.step()
    return optimizer.skipped_steps.item(), all(map(torch.equal, before, whole(model)))


def test_a_bad_shard_of_one_process_skips_the_step_of_all(processes):
    assert processes.run(2, with_a_bad_shard) == [(1, True), (1, True)]


def unlearned():
    """Return the encoder of a tiny model after a short run with sharpness."""
    forget, retain = torch.rand(2, 12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = ux.Settings(steps=2, batch_size=5, sharpness=0.3, tolerance=1.0)
    model = ux.unlearn(
        tiny.model("vqgan"), forget, retain, task=ux.tasks.CenterCrop(0.5), epsilon=0.1, settings=settings
    )
    return [parameter.detach() for parameter in model.encoder_parameters()]


def test_two_processes_unlearn_like_one(processes):
    one, two = unlearned(), processes.run(2, unlearned)
    torch.testing.assert_close(two[0], one, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, *two))
