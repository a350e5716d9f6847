"""torch.compile of the step: one graph, no recompilation, the eager result; opcheck of every operator."""

import math

import pytest
import torch
from steps import control_of, control_row, report_of
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import unlearn_ext as ux
from unlearn_ext.ops.layout import Hyper

OPTIMIZERS = {
    "sgd": lambda p, **k: ux.EpsilonSGD(p, **k),
    "momentum": lambda p, **k: ux.EpsilonSGD(p, momentum=0.9, weight_decay=0.01, **k),
    "adamw": lambda p, **k: ux.EpsilonAdamW(p, **k),
}


def gradients(net: nn.Module, optimizer: torch.optim.Optimizer, index: int) -> None:
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(index))
    f1 = net(inputs).square().mean()
    f1.backward()
    optimizer.hold_constraint(f1)
    (net(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_for_all_steps(make, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled_net, eager_net = model(), model()
    nets = {}
    for net in (compiled_net, eager_net):
        nets[net] = OPTIMIZERS[make](net.parameters(), lr=1e-2, control=ux.EpsilonGap(0.3))
        gradients(net, nets[net], 0)
        nets[net].step()  # creates the state
        nets[net].zero_grad()
    compiled = torch.compile(nets[compiled_net].step, fullgraph=True, backend=counter)
    for index in range(1, 8):
        for net, optimizer in nets.items():
            gradients(net, optimizer, index)
            optimizer.param_groups[0]["lr"] = 1e-2 / index
            optimizer.control.epsilon, optimizer.control.rate = 0.3 / index, 0.1 + 0.01 * index
            compiled() if net is compiled_net else optimizer.step()
            optimizer.zero_grad()
    assert counter.frame_count == 1
    for mine, theirs in zip(compiled_net.parameters(), eager_net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert nets[compiled_net].stats.psi == nets[eager_net].stats.psi


def test_a_whole_training_step():
    torch._dynamo.reset()
    nets, results = (model(), model()), []
    for net in nets:
        optimizer = ux.EpsilonAdamW(net.parameters(), lr=1e-2, control=ux.EpsilonGap(0.3))

        def train(index: int, net=net, optimizer=optimizer) -> None:
            gradients(net, optimizer, index)
            optimizer.step()
            optimizer.zero_grad()

        run = torch.compile(train, backend="aot_eager") if net is nets[0] else train
        for index in range(6):
            run(index)
        results.append([p.detach().clone() for p in net.parameters()])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momenta", [(0.0, 0.9), (0.9, 0.0)])
def test_a_group_without_momentum_beside_one_with(momenta):
    torch._dynamo.reset()
    nets, optimizers = (model(), model()), []
    for net in nets:
        groups = [{"params": net[i].parameters(), "momentum": m} for i, m in zip((0, 2), momenta, strict=True)]
        optimizers.append(ux.EpsilonSGD(groups, lr=1e-2, control=ux.EpsilonGap(0.3)))
    compiled = torch.compile(optimizers[0].step, backend="aot_eager", fullgraph=True)
    for index in range(5):
        for net, optimizer in zip(nets, optimizers, strict=True):
            gradients(net, optimizer, index)
            compiled() if index and net is nets[0] else optimizer.step()
            optimizer.zero_grad()
    for mine, theirs in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(mine, theirs)


def test_momentum_that_is_turned_on_needs_an_uncompiled_step():
    torch._dynamo.reset()
    net = model()
    optimizer = ux.EpsilonSGD(net.parameters(), lr=1e-2, control=ux.EpsilonGap(0.3))
    compiled = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    gradients(net, optimizer, 0)
    optimizer.step()
    optimizer.zero_grad()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.param_groups[0]["momentum"] = 0.9
    gradients(net, optimizer, 1)
    # torch leaves gradients disabled after compiled code raises
    with torch.enable_grad(), pytest.raises(RuntimeError, match="take one step outside"):
        compiled()
    for param, was in zip(net.parameters(), before, strict=True):
        assert torch.equal(param, was)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_first_step_of_a_new_group_runs_uncompiled(make):
    torch._dynamo.reset()
    nets = model(), model()
    optimizers = [OPTIMIZERS[make](net[0].parameters(), lr=1e-2, control=ux.EpsilonGap(0.3)) for net in nets]
    compiled = torch.compile(optimizers[0].step, backend="eager")
    for index in range(5):
        for net, optimizer in zip(nets, optimizers, strict=True):
            if index == 2:
                optimizer.add_param_group({"params": net[2].parameters(), "lr": 1e-3})
            gradients(net, optimizer, index)
            compiled() if net is nets[0] else optimizer.step()
            net.zero_grad()
    for mine, theirs in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(mine, theirs)


def test_what_cannot_be_compiled_runs_uncompiled():
    torch._dynamo.reset()
    net = model()
    optimizer = ux.EpsilonSGD(net.parameters(), lr=1e-2, control=lambda stats: stats.constraint * 2)
    compiled = torch.compile(optimizer.step, backend="eager")
    for index in range(3):
        gradients(net, optimizer, index)
        compiled()
        optimizer.zero_grad()
    assert optimizer.stats.psi.item() == pytest.approx(2 * optimizer.stats.constraint.item())


def step_arguments(rule: str) -> tuple:
    generator = torch.Generator().manual_seed(0)
    params, grads, constraint_grads, firsts = ([torch.randn(n, generator=generator) for n in (7, 33)] for _ in range(4))
    hyper = torch.zeros(1, len(Hyper), dtype=torch.float64)
    hyper[0, Hyper.LR], hyper[0, Hyper.BETA1], hyper[0, Hyper.BETA2], hyper[0, Hyper.EPS] = 0.1, 0.9, 0.99, 1e-8
    counters, seconds = [torch.tensor(1.0) for _ in params], [t.square() for t in firsts]
    averages = [torch.zeros_like(t) for t in params]
    control, report = control_of(control_row(decay=0.5)), report_of(1)
    shared = (counters, averages, [0, 0], hyper, control, report)
    return {
        "sgd": (params, grads, constraint_grads, firsts, *shared),
        "adamw": (params, grads, constraint_grads, firsts, seconds, *shared),
        "wrap": (params, firsts, grads, constraint_grads, seconds, *shared),
    }[rule]


@pytest.mark.parametrize(
    "name", ["halfspace_stats", "halfspace_project_", "sgd_step_", "adamw_step_", "wrap_step_", "optimizer_step_"]
)
def test_opcheck(name):
    pytest.importorskip("expecttest", reason="torch's opcheck imports expecttest")
    generator = torch.Generator().manual_seed(0)
    directions, constraint_grads = ([torch.randn(n, generator=generator) for n in (7, 33)] for _ in range(2))
    param = nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = ux.EpsilonSGD([param], control=ux.EpsilonGap(0.1), momentum=0.9)
    optimizer.step()
    params, grads, held, firsts, counters, averages, groups, *blocks = step_arguments("sgd")
    arguments = {
        "halfspace_stats": (directions, constraint_grads * 2),  # two constraints
        "halfspace_project_": (directions, constraint_grads * 2, torch.full((2,), 0.5)),
        "sgd_step_": step_arguments("sgd"),
        "adamw_step_": step_arguments("adamw"),
        "wrap_step_": step_arguments("wrap"),
        "optimizer_step_": (
            optimizer._number, params, grads, firsts, [0, 1], [], [], counters, [0, 1], groups, held, averages,
            [torch.tensor(1.0)], [0], *blocks,
        ),
    }[name]  # fmt: skip
    torch.library.opcheck(getattr(torch.ops.unlearn_ext, name).default, arguments)


def test_numbers_that_are_tensors_are_read_by_every_step():
    p = nn.Parameter(torch.ones(3))
    epsilon, rate, lr = torch.tensor(0.5), torch.tensor(0.1), torch.tensor(0.01)
    control = ux.EpsilonGap(epsilon, rate=rate, delta=2.0, cap=math.inf)  # ψ depends on the step alone
    optimizer = ux.EpsilonSGD([p], lr=lr, control=control)
    for _ in range(2):
        epsilon.mul_(0.5), rate.mul_(2), lr.mul_(3)
        p.grad = torch.ones_like(p)
        optimizer.hold_constraint(torch.tensor(1.0))
        p.grad = torch.zeros_like(p)
        optimizer.step()
        expected = rate.item() / lr.item() * (1.0 - epsilon.item()) ** 2
        assert optimizer.stats.psi.item() == pytest.approx(expected, rel=1e-6)
