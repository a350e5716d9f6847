"""accelerate, ZeroRedundancyOptimizer and FSDP1: the result is right, or the error is one sentence."""

import os
import runpy
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training import (
    CONTROL,
    OPTIMIZERS,
    batches,
    forget_loss,
    network,
    retain_loss,
    share,
    train,
    train_without_constraint,
    whole,
)

import unlearn_ext as ux

EXAMPLE = Path(__file__).parents[2] / "examples" / "accelerate_fsdp2.py"
NAMESAKES = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def under_fsdp2(work, *args):
    """Return ``work(accelerator, *args)`` with an accelerator that shards by FSDP2."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DistributedType

    variables = {"RANK": dist.get_rank(), "LOCAL_RANK": dist.get_rank(), "WORLD_SIZE": dist.get_world_size()}
    variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 0}  # not used: there is a process group already
    try:
        with mock.patch.dict(os.environ, {name: str(value) for name, value in variables.items()}):
            accelerator = Accelerator(cpu=True)
        # accelerate enables FSDP2 only on accelerators, but its code also works with gloo on CPUs.
        state = AcceleratorState._shared_state
        state["distributed_type"] = DistributedType.FSDP
        state["fsdp_plugin"] = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="NO_WRAP")
        return work(accelerator, *args)
    finally:
        for shared in (AcceleratorState, PartialState, GradientState):
            shared._reset_state()


def accelerated(accelerator, name, constrained, namesake=False):
    """Train under accelerate with FSDP2, which replaces the parameters in ``param_groups``."""
    model = network()
    optimizer = NAMESAKES[name](model.parameters(), lr=0.01) if namesake else made(name, model.parameters())
    model, prepared = accelerator.prepare(model, optimizer)
    for forget, retain in batches():
        if constrained:
            f1 = forget_loss(model, share(forget))
            accelerator.backward(f1)
            optimizer.hold_constraint(f1)
        accelerator.backward(retain_loss(model, share(retain)))
        prepared.step()
        prepared.zero_grad()
    sharded = all(hasattr(p, "full_tensor") for p in optimizer.param_groups[0]["params"])
    return whole(model), sharded


def example_with_shards(accelerator):
    """Run the example; return the reached f1 and the number of its processes."""
    example = runpy.run_path(str(EXAMPLE))
    return example["train"](accelerator), accelerator.num_processes


def made(name, params):
    cls = {"sgd": ux.EpsilonSGD, "adamw": ux.EpsilonAdamW}[name]
    return cls(params, lr=0.01, control=CONTROL)


@pytest.mark.parametrize("name", NAMESAKES)
def test_accelerates_fsdp2_equals_torchs_optimizer(processes, name):
    pytest.importorskip("accelerate", reason="accelerate comes with the extra `examples`")
    ours, theirs = (processes.run(2, under_fsdp2, accelerated, name, False, namesake)[0] for namesake in (False, True))
    assert ours[1]  # the optimizer has the sharded parameters
    assert theirs[1]
    start = whole(network())
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(theirs[0], start, strict=True))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMESAKES)
def test_accelerates_fsdp2_equals_one_process(processes, name):
    pytest.importorskip("accelerate", reason="accelerate comes with the extra `examples`")
    parameters, _ = processes.run(2, under_fsdp2, accelerated, name, True)[0]
    model = network()
    optimizer = made(name, model.parameters())
    assert max(train(model, optimizer)) > 0
    torch.testing.assert_close(parameters, whole(model), rtol=1e-5, atol=1e-6)


def test_the_example_of_fsdp2_settles_at_epsilon(processes):
    pytest.importorskip("accelerate", reason="accelerate comes with the extra `examples`")
    for f1, number in processes.run(2, under_fsdp2, example_with_shards):
        assert number == 2
        assert f1 == pytest.approx(0.1, rel=0.05)


def divided_by_zero(name, **options):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(network())
    cls = {"sgd": ux.EpsilonSGD, "adamw": ux.EpsilonAdamW}[name]
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, lr=0.01, **options)
    train_without_constraint(model, optimizer, share)
    return whole(model)


def what_is_said(work, *args, **options):
    try:
        work(*args, **options)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NAMESAKES)
def test_zero_is_refused_where_a_constraint_is_to_be_held(processes, name):
    for said in processes.run(2, what_is_said, divided_by_zero, name, control=CONTROL):
        assert "ZeroRedundancyOptimizer" in said
        assert "fully_shard" in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", NAMESAKES)
def test_zero_may_have_an_optimizer_without_control(processes, name):
    parameters = processes.run(2, divided_by_zero, name)[0]
    model = network()
    optimizer = NAMESAKES[name](model.parameters(), lr=0.01)
    train_without_constraint(model, optimizer)
    torch.testing.assert_close(parameters, whole(model), rtol=1e-5, atol=1e-6)


def a_control_set_afterwards():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=ux.EpsilonSGD, lr=0.01)
    optimizer.optim.control = CONTROL
    f1 = forget_loss(model, share(next(batches())[0]))
    f1.backward()
    optimizer.optim.hold_constraint(f1)


def test_zero_is_refused_where_a_control_is_set_afterwards(processes):
    for said in processes.run(2, what_is_said, a_control_set_afterwards):
        assert "ZeroRedundancyOptimizer" in said


def fully_sharded(name, original, constrained=True):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=original)
    optimizer = OPTIMIZERS[name](model.parameters())
    (train if constrained else train_without_constraint)(model, optimizer, share)
    with FullyShardedDataParallel.summon_full_params(model):
        return whole(model)


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore")
def test_fsdp1_is_refused_where_a_constraint_is_held(processes, name, original):
    for said in processes.run(2, what_is_said, fully_sharded, name, original):
        assert "FSDP1" in said
        assert "fully_shard" in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore")
def test_fsdp1_may_have_an_optimizer_that_holds_nothing(processes, name, original):
    parameters = processes.run(2, fully_sharded, name, original, constrained=False)[0]
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train_without_constraint(model, optimizer)
    torch.testing.assert_close(parameters, whole(model), rtol=1e-5, atol=1e-6)
