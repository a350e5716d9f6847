"""Torch's checks of its SGD and AdamW, on this package's; torch's optimizer database gives the options."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

pytest.importorskip("expecttest", reason="torch's optimizer database imports expecttest")
from torch.testing._internal.common_optimizers import (
    optim_error_inputs_func_adamw,
    optim_error_inputs_func_sgd,
    optim_inputs_func_adamw,
    optim_inputs_func_sgd,
)

import unlearn_ext as ux

UNKNOWN = {"amsgrad", "capturable", "differentiable", "foreach", "fused", "decoupled_weight_decay"}  # not options here
NAMESAKE = {ux.EpsilonSGD: torch.optim.SGD, ux.EpsilonAdamW: torch.optim.AdamW}
INPUTS = {ux.EpsilonSGD: optim_inputs_func_sgd, ux.EpsilonAdamW: optim_inputs_func_adamw}
ERRORS = {ux.EpsilonSGD: optim_error_inputs_func_sgd, ux.EpsilonAdamW: optim_error_inputs_func_adamw}
GAP = ux.EpsilonGap(0.3)


def known(kwargs: dict) -> bool:
    if isinstance(kwargs.get("betas"), tuple) and any(isinstance(beta, torch.Tensor) for beta in kwargs["betas"]):
        return False  # torch's kernels do not take tensor betas either
    return not UNKNOWN & kwargs.keys()


CASES = [
    pytest.param(
        cls, given.kwargs, fused, id=f"{cls.__name__}-{given.desc}-{'fused' if fused is None else 'reference'}"
    )
    for cls, inputs in INPUTS.items()
    for given in inputs("cpu")
    if known(given.kwargs)
    for fused in (None, False)
]
every_option = pytest.mark.parametrize(("cls", "kwargs", "fused"), CASES)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def loss_of(net: nn.Module, index: int) -> torch.Tensor:
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(index))
    return (net(inputs) - inputs.sum(1, keepdim=True)).square().mean()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, constrained: bool = False) -> None:
    for index in steps:
        if constrained:
            f1 = net(torch.ones(4, 5)).square().mean()
            f1.backward()
            optimizer.hold_constraint(f1)
        loss_of(net, index).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(first: nn.Module, second: nn.Module, **tolerance) -> None:
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **(tolerance or {"rtol": 0, "atol": 0}))


@every_option
def test_equals_torchs_optimizer_when_nothing_is_held(cls, kwargs, fused):
    ours, theirs = model(), model()
    train(ours, cls(ours.parameters(), control=GAP, fused=fused, **kwargs), range(30))
    train(theirs, NAMESAKE[cls](theirs.parameters(), **kwargs), range(30))
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


@every_option
@pytest.mark.parametrize("constrained", [False, True])
def test_a_checkpoint_continues_to_the_same_bits(cls, kwargs, fused, constrained):
    straight, first, second = model(), model(), model()
    train(straight, cls(straight.parameters(), control=GAP, fused=fused, **kwargs), range(20), constrained)
    optimizer = cls(first.parameters(), control=GAP, fused=fused, **kwargs)
    train(first, optimizer, range(11), constrained)
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second.load_state_dict(weights)
    other = cls(second.parameters(), control=GAP, fused=fused, **kwargs)
    other.load_state_dict(state)
    train(second, other, range(11, 20), constrained)
    assert_same(second, straight)


@every_option
def test_deepcopy_and_pickle_continue_to_the_same_bits(cls, kwargs, fused):
    net = model()
    optimizer = cls(net.parameters(), control=GAP, fused=fused, **kwargs)
    train(net, optimizer, range(7), constrained=True)
    copies = [copy.deepcopy([net, optimizer]), pickle.loads(pickle.dumps([net, optimizer]))]
    train(net, optimizer, range(7, 15), constrained=True)
    for twin, its_optimizer in copies:
        assert its_optimizer.skipped_steps.item() == 0
        train(twin, its_optimizer, range(7, 15), constrained=True)
        assert_same(twin, net)


@every_option
def test_it_can_be_printed(cls, kwargs, fused):
    text = repr(cls(model().parameters(), control=GAP, fused=fused, **kwargs))
    assert cls.__name__ in text
    assert "lr" in text
    assert "epsilon=0.3" in text


@every_option
def test_no_gradient_no_step(cls, kwargs, fused):
    net, before = model(), model()
    optimizer = cls(net.parameters(), control=GAP, fused=fused, **kwargs)
    optimizer.step()
    assert_same(net, before)
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("cls", list(NAMESAKE))
def test_bad_options_are_refused_as_torch_refuses_them(cls):
    tried = 0
    for error in ERRORS[cls]("cpu", torch.float32):
        given = error.optimizer_error_input
        if not known(given.kwargs):
            continue
        tried += 1
        params = given.params if given.params is not None else [nn.Parameter(torch.ones(1))]
        expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
        with expected(error.error_type):
            cls(params, control=GAP, **given.kwargs)
    assert tried >= 4


@pytest.mark.parametrize("cls", list(NAMESAKE))
class TestGroups:
    def test_each_has_its_own_options(self, cls):
        ours, theirs = model(), model()
        for net, make in (
            (ours, lambda groups: cls(groups, lr=1e-2, control=GAP)),
            (theirs, lambda g: NAMESAKE[cls](g, lr=1e-2)),
        ):
            groups = [{"params": net[0].parameters(), "lr": 3e-3, "weight_decay": 0.2}, {"params": net[2].parameters()}]
            train(net, make(groups), range(20))
        assert_same(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_a_group_may_be_added_while_a_gradient_is_held(self, cls):
        net = model()
        optimizer = cls(net[0].parameters(), lr=1e-2, control=GAP)
        train(net, optimizer, range(3), constrained=True)
        f1 = net(torch.ones(4, 5)).square().mean()
        f1.backward()
        optimizer.hold_constraint(f1)
        optimizer.add_param_group({"params": net[2].parameters(), "lr": 1e-3})
        net[2].zero_grad()
        before = [p.detach().clone() for p in net.parameters()]
        loss_of(net, 3).backward()
        optimizer.step()
        assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
        assert optimizer.stats.sq_constraint.item() > 0

    def test_one_lambda_for_all_groups(self, cls):
        whole, split = model(), model()
        train(whole, cls(whole.parameters(), lr=1e-2, control=GAP), range(10), constrained=True)
        groups = [{"params": split[0].parameters()}, {"params": split[2].parameters()}]
        train(split, cls(groups, lr=1e-2, control=GAP), range(10), constrained=True)
        assert_same(split, whole, rtol=1e-5, atol=1e-6)


def test_a_group_may_have_momentum_beside_one_without_and_either_may_change():
    ours, theirs = model(), model()
    optimizers = []
    for net, make in ((ours, lambda groups: ux.EpsilonSGD(groups, lr=1e-2, control=GAP)), (theirs, torch.optim.SGD)):
        groups = [{"params": net[0].parameters(), "momentum": 0.9}, {"params": net[2].parameters()}]
        optimizers.append(make(groups))
    for momenta in ((0.9, 0.0), (0.0, 0.5), (0.9, 0.5)):  # a buffer is unused while its momentum is 0
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            for group, momentum in zip(optimizer.param_groups, momenta, strict=True):
                group.update(lr=1e-2, momentum=momentum)
            train(net, optimizer, range(4))
        assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, gamma=0.9, step_size=10),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=30),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=30),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[5],
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=1e-4),
}


@pytest.mark.parametrize("cls", list(NAMESAKE))
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers_drive_it_as_they_drive_torchs(cls, scheduler, tensor_lr):
    nets = model(), model()
    extra = {"momentum": 0.9} if cls is ux.EpsilonSGD else {}
    for net, make in zip(nets, (lambda p, **k: cls(p, control=GAP, **k), NAMESAKE[cls]), strict=True):
        optimizer = make(net.parameters(), lr=torch.tensor(1e-2) if tensor_lr else 1e-2, **extra)
        schedule = SCHEDULERS[scheduler](optimizer)
        for index in range(25):
            train(net, optimizer, range(index, index + 1))
            schedule.step()
    assert_same(*nets, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", list(NAMESAKE))
class TestHooks:
    def test_step_hooks_run_in_order(self, cls):
        net, seen = model(), []
        optimizer = cls(net.parameters(), control=GAP)
        before = optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        train(net, optimizer, range(1))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        train(net, optimizer, range(1))
        before.remove()
        train(net, optimizer, range(1))
        assert seen == ["before", "before", "after", "after"]

    def test_hooks_of_all_optimizers_run(self, cls):
        net, seen = model(), []
        optimizer = cls(net.parameters(), control=GAP)
        before = register_optimizer_step_pre_hook(lambda *_: seen.append("before"))
        train(net, optimizer, range(1))
        after = register_optimizer_step_post_hook(lambda *_: seen.append("after"))
        train(net, optimizer, range(1))
        before.remove()
        train(net, optimizer, range(1))
        after.remove()
        train(net, optimizer, range(1))
        assert seen == ["before", "before", "after", "after"]

    def test_a_profiler_records_every_step(self, cls):
        net = model()
        optimizer = cls(net.parameters(), control=GAP)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            train(net, optimizer, range(2))
        assert [e.name for e in profile.events()].count(f"Optimizer.step#{cls.__name__}.step") == 2

    def test_state_dict_hooks_run(self, cls):
        net = model()
        optimizer, seen = cls(net.parameters(), control=GAP), []
        optimizer.register_state_dict_post_hook(lambda *_: seen.append("saved"))
        optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
        train(net, optimizer, range(2))
        optimizer.load_state_dict(optimizer.state_dict())
        assert seen == ["saved", "loaded"]

    def test_a_closure_is_called_once_with_gradients_enabled(self, cls):
        net, calls = model(), []
        optimizer = cls(net.parameters(), control=GAP)

        def closure() -> torch.Tensor:
            calls.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = loss_of(net, 0)
            loss.backward()
            return loss

        assert optimizer.step(closure).item() > 0
        assert calls == [True]


@pytest.mark.parametrize("cls", list(NAMESAKE))
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_to_none_and_to_zero(cls, set_to_none):
    nets = model(), model()
    for net, make in zip(
        nets, (lambda p: cls(p, lr=1e-2, control=GAP), lambda p: NAMESAKE[cls](p, lr=1e-2)), strict=True
    ):
        optimizer = make(net.parameters())
        for index in range(5):
            loss_of(net, index).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    assert_same(*nets, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("cls", list(NAMESAKE))
def test_a_torch_checkpoint_loads(cls, fused):
    ours, theirs = model(), model()
    extra = {"momentum": 0.9} if cls is ux.EpsilonSGD else {}
    torch_optimizer = NAMESAKE[cls](theirs.parameters(), lr=1e-2, **extra)
    train(theirs, torch_optimizer, range(10))
    ours.load_state_dict(theirs.state_dict())
    optimizer = cls(ours.parameters(), lr=1e-2, control=GAP, fused=fused, **extra)
    optimizer.load_state_dict(torch_optimizer.state_dict())
    train(ours, optimizer, range(10, 20))
    train(theirs, torch_optimizer, range(10, 20))
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("cls", list(NAMESAKE))
def test_an_old_torch_checkpoint_loads(cls, fused):
    """Older torch saved a step as a number, and a missing buffer as ``None``."""
    new, old = model(), model()
    extra = {"momentum": 0.9} if cls is ux.EpsilonSGD else {}
    optimizers = [cls(net.parameters(), lr=1e-2, control=GAP, fused=fused, **extra) for net in (new, old)]
    train(new, optimizers[0], range(5))
    old.load_state_dict(new.state_dict())
    saved = copy.deepcopy(optimizers[0].state_dict())
    saved["param_groups"][0].pop("constraint")
    for state in saved["state"].values():
        state["step"] = int(state["step"].item())
        state["max_exp_avg_sq"] = None
    optimizers[1].load_state_dict(saved)
    for net, optimizer in zip((new, old), optimizers, strict=True):
        train(net, optimizer, range(5, 10))
    assert_same(old, new)
