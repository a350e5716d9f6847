"""State dicts behave as torch's: hooks may change everything, all groups have the same keys, older dicts load."""

import copy

import pytest
import torch
from torch import nn

import unlearn_ext as ux

OPTIMIZERS = {
    "momentum": (ux.EpsilonSGD, torch.optim.SGD, {"momentum": 0.9}, "momentum_buffer"),
    "adamw": (ux.EpsilonAdamW, torch.optim.AdamW, {}, "exp_avg"),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


class Net(nn.Module):
    """Layers of one shape, registered in the order of ``names``: a state in the wrong layer raises no error."""

    def __init__(self, names) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {name: nn.Linear(4, 4) for name in sorted(names)}
        for name in names:
            setattr(self, name, layers[name])

    def forward(self, x):
        return self.c(self.b(self.a(x).tanh()).tanh())


def groups_of(net: Net, split: bool) -> list:
    named = list(net.named_parameters())
    if not split:
        return named
    return [{"params": named[:2], "lr": 0.1}, {"params": named[2:], "lr": 0.01}]


def train(net: Net, optimizer: torch.optim.Optimizer, steps: int, held: bool = False) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for index in range(steps):
        optimizer.zero_grad()
        if held:
            f1 = net(x).square().mean()
            f1.backward()
            optimizer.hold_constraint(f1)
            if index == steps - 1:
                return
        (net(x) - 1).square().mean().backward()
        optimizer.step()


def by_name(optimizer: torch.optim.Optimizer, saved: dict) -> dict:
    """Match states to parameters by name, in any order; the hook is that of torch's documentation."""
    mine = copy.deepcopy(optimizer.state_dict())
    there = {n: i for g in saved["param_groups"] for n, i in zip(g["param_names"], g["params"], strict=True)}
    state = {}
    for group in mine["param_groups"]:
        group["constraint"] = saved["param_groups"][0]["constraint"]
        for name, index in zip(group["param_names"], group["params"], strict=True):
            if there[name] in saved["state"]:
                state[index] = saved["state"][there[name]]
    return {"state": state, "param_groups": mine["param_groups"]}


@every_optimizer
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("split", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("order", ["cab", "bca"])
def test_a_hook_before_loading_may_match_by_name(name, held, split, order):
    cls, _, options, key = OPTIMIZERS[name]
    first, second = Net("abc"), Net(order)
    control = ux.EpsilonGap(0.1)
    saving = cls(groups_of(first, split[0]), lr=0.1, control=control, **options)
    train(first, saving, 3, held)
    loading = cls(groups_of(second, split[1]), lr=0.1, control=control, **options)
    loading.register_load_state_dict_pre_hook(by_name)
    loading.load_state_dict(saving.state_dict())
    theirs = dict(second.named_parameters())
    for n, p in first.named_parameters():
        assert torch.equal(loading.state[theirs[n]][key], saving.state[p][key])
    if not held:
        return
    grads, loaded = (
        dict(zip(map(id, held.params), held.grads, strict=True))
        for held in (optimizer._constraints.held.by_name[""] for optimizer in (saving, loading))
    )
    for n, p in first.named_parameters():
        assert torch.equal(loaded[id(theirs[n])], grads[id(p)])


@every_optimizer
class TestHooks:
    @staticmethod
    def made(name, **more):
        cls, _, options, key = OPTIMIZERS[name]
        net = Net("abc")
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.1), **options, **more)
        train(net, optimizer, 2)
        return net, optimizer, key

    def test_after_saving(self, name):
        net, optimizer, _ = self.made(name)
        train(net, optimizer, 1, held=True)

        def rename(optimizer, saved):
            return {"renamed": saved["state"], "groups": saved["param_groups"]}

        optimizer.register_state_dict_post_hook(rename)
        saved = optimizer.state_dict()
        assert set(saved) == {"renamed", "groups"}
        assert all("constraint_grad" in state for state in saved["renamed"].values())  # the hook saw the held gradients
        assert all("held" in group["constraint"] for group in saved["groups"])

    def test_after_saving_that_removes_keys(self, name):
        net, optimizer, _ = self.made(name)
        train(net, optimizer, 1, held=True)

        def strip(optimizer, saved):
            for group in saved["param_groups"]:
                del group["constraint"]
            for state in saved["state"].values():
                state.pop("constraint_grad")

        optimizer.register_state_dict_post_hook(strip)
        saved = optimizer.state_dict()
        assert not any("constraint" in group for group in saved["param_groups"])
        assert not any("constraint_grad" in state for state in saved["state"].values())
        (net(torch.ones(2, 4))).sum().backward()
        optimizer.step()  # the held gradients are still there
        assert optimizer.stats.sq_constraint.item() > 0

    def test_before_saving(self, name):
        _, optimizer, key = self.made(name)

        def halve(optimizer):
            for state in optimizer.state.values():
                state[key] = state[key] * 0.5

        before = [state[key].clone() for state in optimizer.state.values()]
        optimizer.register_state_dict_pre_hook(halve)
        saved = optimizer.state_dict()
        for state, was in zip(saved["state"].values(), before, strict=True):
            assert torch.equal(state[key], was * 0.5)

    def test_after_loading(self, name):
        _, optimizer, key = self.made(name)
        saved = copy.deepcopy(optimizer.state_dict())
        net, other, _ = self.made(name)

        def change(optimizer):
            for group in optimizer.param_groups:
                group["lr"] = 7.0
            for state in optimizer.state.values():
                state[key] = state[key].double()

        other.register_load_state_dict_post_hook(change)
        other.load_state_dict(saved)
        assert other.param_groups[0]["lr"] == 7.0
        assert all(other.state[p][key].dtype == torch.float64 for p in net.parameters())

    def test_order_before_loading(self, name):
        _, optimizer, key = self.made(name)
        saved = optimizer.state_dict()
        _, other, _ = self.made(name)
        seen = []

        def hook(label, factor):
            def adapt(optimizer, given):
                seen.append(label)
                state = {i: {k: v * factor if k == key else v for k, v in s.items()} for i, s in given["state"].items()}
                return {**given, "state": state}

            return adapt

        other.register_load_state_dict_pre_hook(hook("second", 2.0))
        other.register_load_state_dict_pre_hook(hook("first", 3.0), prepend=True)
        other.load_state_dict(saved)
        assert seen == ["first", "second"]
        for mine, its in zip(optimizer.state.values(), other.state.values(), strict=True):
            torch.testing.assert_close(its[key], mine[key] * 6)

    def test_a_hook_that_raises(self, name):
        net, optimizer, _ = self.made(name)
        train(net, optimizer, 1, held=True)
        before = {id(p): set(state) for p, state in optimizer.state.items()}

        def fail(*_):
            raise OSError("the disk is full")

        handles = [optimizer.register_state_dict_post_hook(fail), optimizer.register_load_state_dict_pre_hook(fail)]
        for call in (optimizer.state_dict, lambda: optimizer.load_state_dict({"state": {}, "param_groups": []})):
            with pytest.raises(OSError, match="the disk is full"):
                call()
        for handle in handles:
            handle.remove()
        assert {id(p): set(state) for p, state in optimizer.state.items()} == before
        (net(torch.ones(2, 4))).sum().backward()
        optimizer.step()
        assert optimizer.stats.sq_constraint.item() > 0


@every_optimizer
class TestKeys:
    def test_every_group_has_the_same(self, name):
        cls, _, options, _ = OPTIMIZERS[name]
        net = Net("abc")
        optimizer = cls(groups_of(net, split=True), lr=0.1, control=ux.EpsilonGap(0.1), **options)
        train(net, optimizer, 2)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        extra = nn.Linear(2, 2)
        optimizer.add_param_group({"params": list(extra.named_parameters())})
        for groups in (optimizer.param_groups, optimizer.state_dict()["param_groups"]):
            assert len({frozenset(group) for group in groups}) == 1

    def test_saving_changes_none(self, name):
        cls, _, options, _ = OPTIMIZERS[name]
        net = Net("abc")
        optimizer = cls(groups_of(net, split=True), lr=0.1, control=ux.EpsilonGap(0.1), **options)
        train(net, optimizer, 2)
        train(net, optimizer, 1, held=True)
        before = [set(group) for group in optimizer.param_groups], [set(state) for state in optimizer.state.values()]
        optimizer.state_dict()
        after = [set(group) for group in optimizer.param_groups], [set(state) for state in optimizer.state.values()]
        assert before == after

    def test_dicts_of_older_torch_load(self, name):
        cls, namesake, options, _ = OPTIMIZERS[name]
        nets = Net("abc"), Net("abc")
        old = namesake(nets[0].parameters(), lr=0.1, **options)
        train(nets[0], old, 2)
        saved = copy.deepcopy(old.state_dict())
        for group in saved["param_groups"]:
            for option in ("maximize", "nesterov", "foreach", "differentiable", "fused", "capturable", "amsgrad"):
                group.pop(option, None)
            group.pop("decoupled_weight_decay", None)
        nets[1].load_state_dict(nets[0].state_dict())
        new = cls(nets[1].parameters(), lr=0.5, **options)
        new.load_state_dict(saved)
        for net, optimizer in zip(nets, (old, new), strict=True):
            train(net, optimizer, 3)
        for mine, its in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


class TestStatesOfOtherOptimizers:
    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad"),
            (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
            (lambda p: torch.optim.Adam(p, weight_decay=0.1), "weight decay"),
        ],
    )
    def test_are_refused_and_nothing_is_loaded(self, make, said):
        theirs, mine = Net("abc"), Net("abc")
        other, optimizer = make(theirs.parameters()), ux.EpsilonAdamW(mine.parameters(), lr=0.5)
        train(theirs, other, 2)
        train(mine, optimizer, 1)
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match=said):
            optimizer.load_state_dict(other.state_dict())
        assert optimizer.param_groups[0]["lr"] == 0.5
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                assert torch.equal(value, before["state"][index][key])

    def test_adam_without_weight_decay_loads(self):
        theirs, mine = Net("abc"), Net("abc")
        other, optimizer = torch.optim.Adam(theirs.parameters()), ux.EpsilonAdamW(mine.parameters())
        train(theirs, other, 2)
        mine.load_state_dict(theirs.state_dict())
        optimizer.load_state_dict(other.state_dict())
        for net, one in ((theirs, other), (mine, optimizer)):
            train(net, one, 3)
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
