"""DTensor parameters: the sums count every element once, whether tensors are sharded or replicated."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from training import CONTROL, CONTROLS, OPTIMIZERS, alone, divide, every_stats, network, share, train, whole

import unlearn_ext as ux

#: Shapes of the full tensors by placement on a 2 × 2 mesh; "plain" is no DTensor. One row leaves some shards empty.
SHAPES = {"RS": (5, 3), "SR": (1, 4), "SS": (6, 2), "RR": (3,), "plain": (4,)}


def values(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES.values()]


def sharded(name, mesh_shape, **options):
    model = divide(network(), mesh_shape)
    optimizer = OPTIMIZERS[name](model.parameters(), **options)
    multipliers = train(model, optimizer, share)
    empty = sum(p.to_local().numel() == 0 for p in model.parameters())
    return whole(model), multipliers, empty


@pytest.mark.parametrize("mesh_shape", [(2,), (4,), (2, 2)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fully_shard_equals_one_process_with_the_joined_batch(processes, name, mesh_shape):
    results = processes.run(4 if mesh_shape != (2,) else 2, sharded, name, mesh_shape)
    parameters, multipliers = alone(name)
    for mine, lam, _ in results:
        torch.testing.assert_close(mine, parameters, rtol=1e-5, atol=1e-6)
        assert lam == results[0][1] == pytest.approx(multipliers, rel=1e-4)
    assert max(multipliers) > 0
    assert any(empty for _, _, empty in results)  # some process had an empty shard


@pytest.mark.parametrize("mesh_shape", [(2,), (4,), (2, 2)])
@pytest.mark.parametrize(("constraints", "decay"), [(1, 0.9), (3, 0.0), (3, 0.9)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_several_constraints_and_averages(processes, name, constraints, decay, mesh_shape):
    options = {"control": CONTROLS[constraints], "constraint_grad_ema": decay}
    results = processes.run(4 if mesh_shape != (2,) else 2, sharded, name, mesh_shape, **options)
    parameters, multipliers = alone(name, **options)
    for mine, lam, _ in results:
        torch.testing.assert_close(mine, parameters, rtol=1e-5, atol=1e-6)
        assert lam == results[0][1] == pytest.approx(multipliers, rel=1e-4)
    assert all(max(multipliers[i::constraints]) > 0 for i in range(constraints))  # each constraint was active


def own_psi(stats):
    return 5 * (stats.constraint - 0.05)


@pytest.mark.parametrize("options", [{"control": own_psi}, {"max_norm": 0.1}, {"fused": False}])
def test_options_that_need_the_sums_over_all_shards(processes, options):
    results = processes.run(2, sharded, "adamw", (2,), **options)
    parameters, multipliers = alone("adamw", **options)
    torch.testing.assert_close(results[0][0], parameters, rtol=1e-5, atol=1e-6)
    assert results[0][1] == pytest.approx(multipliers, rel=1e-4)


def placed(tensors):
    """Return the tensors placed as in ``SHAPES`` on 2 × 2 processes, or unchanged on one process."""
    if not dist.is_initialized():
        return tensors
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2))
    kinds = {"R": Replicate(), "S": Shard(0)}
    return [
        tensor if placement == "plain" else distribute_tensor(tensor, mesh, [kinds[letter] for letter in placement])
        for placement, tensor in zip(SHAPES, tensors, strict=True)
    ]


def hold_all(optimizer, parameters, seed, f1, poison=lambda name, placement, grad: None, without=None):
    """Hold random gradients for every constraint but the one with index ``without``; the values are f1, f1 + 1, …"""
    names = optimizer.control if isinstance(optimizer.control, dict) else [None]
    for index, name in enumerate(names):
        if index == without:
            continue
        for placement, parameter, grad in zip(SHAPES, parameters, placed(values(seed + 100 * index)), strict=True):
            poison(name, placement, getattr(grad, "_local_tensor", grad))
            parameter.grad = grad
        optimizer.hold_constraint(torch.tensor(f1 + index), name)


def mixed(name, f1_by_rank, rotate=False, **options):
    """Train two parameter groups on given gradients; the second group mixes the placements.

    With ``rotate``, each step leaves out another constraint.
    """
    parameters = [nn.Parameter(tensor) for tensor in placed(values(0))]
    groups = [{"params": parameters[:1], "lr": 0.03}, {"params": parameters[1:]}]
    optimizer = OPTIMIZERS[name](groups, **options)
    rank = dist.get_rank() if dist.is_initialized() else 0
    for step in range(3):
        hold_all(optimizer, parameters, 10 + step, f1_by_rank[rank] + step, without=step if rotate else None)
        for parameter, grad in zip(parameters, placed(values(20 + step)), strict=True):
            parameter.grad = grad
        optimizer.step()
    stats = torch.stack([value.double() for stats in every_stats(optimizer) for value in stats])
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in parameters], stats


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("constraints", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_placements_at_once(processes, name, constraints, decay):
    options = {"control": CONTROLS[constraints], "constraint_grad_ema": decay}
    expected, expected_stats = mixed(name, [2.5], **options)
    for parameters, stats in processes.run(4, mixed, name, [1.0, 2.0, 3.0, 4.0], **options):
        torch.testing.assert_close(parameters, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stats, expected_stats, rtol=1e-5, atol=1e-6)
    assert expected_stats[2] > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_constraints_that_are_not_held_in_every_step(processes, name):
    options = {"control": CONTROLS[3], "constraint_grad_ema": 0.9, "rotate": True}
    expected, expected_stats = mixed(name, [2.5], **options)
    for parameters, stats in processes.run(4, mixed, name, [1.0, 2.0, 3.0, 4.0], **options):
        torch.testing.assert_close(parameters, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stats, expected_stats, rtol=1e-5, atol=1e-6)


def nan_on_one_rank(poisoned, bad=None, **options):
    """Step with NaN on the last rank: in f1, or in its shard of a gradient with the placement ``poisoned``.

    ``bad`` is the name of the constraint whose gradient has it; ``"f2"`` for the objective's.
    """
    parameters = [nn.Parameter(tensor) for tensor in placed(values(0))]
    optimizer = OPTIMIZERS["adamw"](parameters, **options)
    last = dist.get_rank() == 3

    def poison(name, placement, grad):
        if last and (name, placement) == (bad, poisoned):
            grad[0] = float("nan")

    hold_all(optimizer, parameters, 1, float("nan") if last and poisoned == "f1" else 1.0, poison)
    for placement, parameter, grad in zip(SHAPES, parameters, placed(values(2)), strict=True):
        parameter.grad = grad
        poison("f2", placement, getattr(grad, "_local_tensor", grad))
    optimizer.step()
    written = any(value.abs().sum().item() for p in parameters for value in optimizer.state[p].values())
    unchanged = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in parameters]
    return optimizer.skipped_steps.item(), bool(written), unchanged


@pytest.mark.parametrize(("constraints", "bad"), [(1, "f2"), (3, "f2"), (3, "along 0")])
@pytest.mark.parametrize("poisoned", ["RS", "SS", "RR", "plain", "f1"])
def test_a_bad_value_on_one_process_skips_the_step_on_all(processes, poisoned, constraints, bad):
    options = {"control": CONTROLS[constraints], "constraint_grad_ema": 0.9}
    for skipped, written, parameters in processes.run(4, nan_on_one_rank, poisoned, bad, **options):
        assert (skipped, written) == (1, False)
        assert all(map(torch.equal, parameters, values(0)))


def partial_parameter():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    parameter = nn.Parameter(DTensor.from_local(torch.ones(3), init_device_mesh("cpu", (2,)), [Partial()]))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = OPTIMIZERS["sgd"]([parameter])
    with pytest.raises(RuntimeError, match=r"tensor 0 is a DTensor placed .*Partial.*a sum still to be taken"):
        optimizer.step()


def test_a_partial_parameter_is_refused(processes):
    processes.run(2, partial_parameter)


def partial_gradient():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    weight = nn.Parameter(distribute_tensor(torch.ones(4, 1), mesh, [Replicate()]))
    images = distribute_tensor(torch.arange(8.0).view(2, 4), mesh, [Shard(0)])
    optimizer = ux.EpsilonSGD([weight], lr=1.0, control=CONTROL)
    (images @ weight).sum().backward()
    placement = weight.grad.placements[0]
    optimizer.step()
    return placement.is_partial(), weight.full_tensor().flatten().tolist()


def test_a_gradient_that_autograd_left_partial_is_summed(processes):
    assert processes.run(2, partial_gradient) == [(True, [-3.0, -5.0, -7.0, -9.0])] * 2


def replicas_of_a_mesh(named):
    """Shard a parameter over ranks 0, 1 and over 2, 3; f1 is 1, 2, 3, 4. The pairs are replicas only if ``named``."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    group = mesh.get_group("replicate") if named else "default"
    parameter = nn.Parameter(distribute_tensor(torch.ones(3), mesh["shard"], [Shard(0)]))
    version = parameter._version
    optimizer = ux.EpsilonSGD([parameter], control=CONTROL, process_group=group)
    parameter.grad = torch.ones_like(parameter)
    optimizer.hold_constraint(torch.tensor(dist.get_rank() + 1.0))
    optimizer.step()
    assert parameter._version > version
    return optimizer.stats.constraint.item(), optimizer.stats.sq_constraint.item()


@pytest.mark.parametrize(("named", "f1"), [(True, [2.5] * 4), (False, [1.5, 1.5, 3.5, 3.5])])
def test_replicas_beside_a_mesh_are_those_that_are_named(processes, named, f1):
    assert processes.run(4, replicas_of_a_mesh, named) == [(value, 3.0) for value in f1]
