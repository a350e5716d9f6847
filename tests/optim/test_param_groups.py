"""After any change to ``param_groups``, the next step equals that of torch's optimizers."""

import copy

import pytest
import torch
from steps import PATHS
from torch import nn

import unlearn_ext as ux

OPTIMIZERS = {
    "sgd": (ux.EpsilonSGD, torch.optim.SGD, {}),
    "momentum": (ux.EpsilonSGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "adamw": (ux.EpsilonAdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
}


class Problem:
    """Six parameters in three groups with different learning rates, and two spare ones in no group."""

    def __init__(self, make) -> None:
        generator = torch.Generator().manual_seed(0)
        self.all = [nn.Parameter(torch.randn(5, generator=generator)) for _ in range(8)]
        rates = (0.1, 0.03, 0.01)
        self.optimizer = make(
            [{"params": self.all[2 * i : 2 * i + 2], "lr": rate} for i, rate in enumerate(rates)],
        )
        self.spare = self.all[6:]

    def f1(self) -> torch.Tensor:
        return sum(((p - 1) * (i + 1)).square().mean() for i, p in enumerate(self.all))

    def f2(self) -> torch.Tensor:
        return sum((p * (8 - i)).sin().mean() for i, p in enumerate(self.all))

    def step(self, constrained: bool = False) -> None:
        for p in self.all:
            p.grad = None
        if constrained:
            value = self.f1()
            value.backward()
            self.optimizer.hold_constraint(value)
            for p in self.all:
                p.grad = None
        self.f2().backward()
        self.optimizer.step()


def replaced_list(p: Problem) -> None:
    p.optimizer.param_groups[1]["params"] = list(p.spare)


def replaced_element(p: Problem) -> None:
    p.optimizer.param_groups[0]["params"][1] = p.spare[0]


def grown_list(p: Problem) -> None:
    p.optimizer.param_groups[2]["params"].extend(p.spare)


def shortened_list(p: Problem) -> None:
    del p.optimizer.param_groups[0]["params"][0]


def emptied_list(p: Problem) -> None:
    p.optimizer.param_groups[0]["params"].clear()


def new_groups(p: Problem) -> None:
    p.optimizer.param_groups = [{**g, "params": list(g["params"])} for g in p.optimizer.param_groups[1:]]


def appended_group(p: Problem) -> None:
    p.optimizer.param_groups.append({**p.optimizer.param_groups[0], "params": p.spare, "lr": 0.02})


def inserted_group(p: Problem) -> None:
    p.optimizer.param_groups.insert(0, {**p.optimizer.param_groups[0], "params": p.spare, "lr": 0.02})


def cleared_and_added(p: Problem) -> None:
    p.optimizer.param_groups.clear()
    p.optimizer.add_param_group({"params": [p.all[4], p.spare[1]], "lr": 0.05})


def cleared_with_its_state(p: Problem) -> None:
    p.optimizer.param_groups.clear()
    p.optimizer.state.clear()
    p.optimizer.add_param_group({"params": p.all[:3], "lr": 0.05})


def no_groups(p: Problem) -> None:
    p.optimizer.param_groups.clear()


def first_deleted(p: Problem) -> None:
    del p.optimizer.param_groups[0]


def two_deleted(p: Problem) -> None:
    del p.optimizer.param_groups[:2]


def last_popped(p: Problem) -> None:
    p.optimizer.param_groups.pop()


def reversed_groups(p: Problem) -> None:
    p.optimizer.param_groups.reverse()


def exchanged_parameters(p: Problem) -> None:
    first, last = p.optimizer.param_groups[0]["params"], p.optimizer.param_groups[2]["params"]
    first[0], last[1] = last[1], first[0]


def merged_groups(p: Problem) -> None:
    first, *others = p.optimizer.param_groups
    p.optimizer.param_groups = [{**first, "params": [q for g in (first, *others) for q in g["params"]]}]


OPERATIONS = {
    operation.__name__: operation
    for operation in (
        replaced_list, replaced_element, grown_list, shortened_list, emptied_list, new_groups, appended_group,
        inserted_group, cleared_and_added, cleared_with_its_state, no_groups, first_deleted, two_deleted, last_popped,
        reversed_groups, exchanged_parameters, merged_groups,
    )
}  # fmt: skip


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_step_after_it_equals_torchs(operation, name, fused):
    cls, namesake, options = OPTIMIZERS[name]
    ours = Problem(lambda groups: cls(groups, fused=fused, **options))
    theirs = Problem(lambda groups: namesake(groups, **options))
    for index in range(5):
        for problem in (ours, theirs):
            if index == 2:
                OPERATIONS[operation](problem)
            problem.step()
        for mine, its in zip(ours.all, theirs.all, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_constrained_step_after_it_equals_that_of_a_new_optimizer(operation, name, fused):
    """The new optimizer has the parameters' state and what the control remembers."""
    cls, _, options = OPTIMIZERS[name]
    control = ux.EpsilonGap(0.5)
    changed = Problem(lambda groups: cls(groups, fused=fused, control=control, **options))
    for _ in range(2):
        changed.step(constrained=True)
    OPERATIONS[operation](changed)
    if not changed.optimizer.param_groups:
        return
    anew = copy.deepcopy(changed)
    groups = [{k: v for k, v in g.items() if k != "constraint"} for g in anew.optimizer.param_groups]
    state = anew.optimizer.state
    remembered = copy.deepcopy(changed.optimizer._constraints.kept)
    anew.optimizer = cls(groups, fused=fused, control=control, **options)
    for group in anew.optimizer.param_groups:
        group["constraint"] = remembered
    for group in groups:
        for param in group["params"]:
            if param in state:
                anew.optimizer.state[param] = state[param]
    for problem in (changed, anew):
        problem.step(constrained=True)
    assert changed.optimizer.stats.lam.item() == anew.optimizer.stats.lam.item() > 0
    for mine, its in zip(changed.all, anew.all, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("cls", [ux.EpsilonSGD, ux.EpsilonAdamW])
class TestBetweenHoldAndStep:
    def test_groups_in_another_order_keep_each_gradient_with_its_parameter(self, cls):
        problems = [Problem(lambda groups: cls(groups, control=ux.EpsilonGap(0.1))) for _ in range(2)]
        for problem, early in zip(problems, (True, False), strict=True):
            if early:
                problem.optimizer.param_groups.reverse()
            value = problem.f1()
            value.backward()
            problem.optimizer.hold_constraint(value)
            if not early:
                problem.optimizer.param_groups.reverse()
            problem.f2().backward()
            problem.optimizer.step()
        for mine, its in zip(problems[0].all, problems[1].all, strict=True):
            assert torch.equal(mine, its)

    @pytest.mark.parametrize("operation", ["first_deleted", "replaced_element", "no_groups"])
    def test_a_removed_parameter_raises_and_nothing_is_written(self, cls, operation):
        problem = Problem(lambda groups: cls(groups, control=ux.EpsilonGap(0.1)))
        value = problem.f1()
        value.backward()
        problem.optimizer.hold_constraint(value)
        OPERATIONS[operation](problem)
        before = [p.detach().clone() for p in problem.all]
        problem.f2().backward()
        with pytest.raises(RuntimeError, match="change param_groups before hold_constraint"):
            problem.optimizer.step()
        for mine, was in zip(problem.all, before, strict=True):
            assert torch.equal(mine, was)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_parameters_and_state_may_be_swapped_temporarily(name):
    swap = getattr(torch.optim, "swap_in_optimizer_params_and_state", None)
    if swap is None:
        pytest.skip("this torch cannot exchange the parameters of an optimizer")
    cls, namesake, options = OPTIMIZERS[name]
    ours = Problem(lambda groups: cls(groups, control=ux.EpsilonGap(0.5), **options))
    theirs = Problem(lambda groups: namesake(groups, **options))
    for problem in (ours, theirs):
        problem.step()
        own, others = problem.all, [nn.Parameter(p.detach() * 2) for p in problem.all[:6]]
        state = copy.deepcopy(problem.optimizer.state_dict())
        problem.all = others
        with swap(problem.optimizer, {str(i): p for i, p in enumerate(others)}, state):
            problem.step()
        problem.all, problem.others = own, others
        problem.step()
    for first, second in ((ours.all, theirs.all), (ours.others, theirs.others)):
        for mine, its in zip(first, second, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_the_constraints_values_are_swapped_too():
    """Skipped steps are counted in the values that are swapped in; the optimizer's own count is restored unchanged."""
    param = nn.Parameter(torch.ones(3))
    optimizer = ux.EpsilonAdamW([param], control=ux.EpsilonGap(0.5))
    param.grad = torch.full((3,), torch.nan)
    optimizer.step()
    own = optimizer.param_groups[0]["constraint"]
    others = {name: torch.zeros_like(number) for name, number in own.items()}
    optimizer.param_groups[0]["constraint"] = others
    for _ in range(3):
        optimizer.step()
    assert optimizer.skipped_steps.item() == others["skipped_steps"].item() == 3
    optimizer.param_groups[0]["constraint"] = own
    assert optimizer.skipped_steps.item() == 1
    optimizer.step()
    assert optimizer.skipped_steps.item() == 2
