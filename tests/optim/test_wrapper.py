"""``EpsilonWrapper``: the promise of every step around many optimizers, a float64 reference, and torch's contract."""

import copy
import io
import itertools
import pickle
import tempfile

import numpy as np
import pytest
import torch
from pairs import pairwise
from steps import PATHS
from torch import nn

import unlearn_ext as ux

each_path = pytest.mark.parametrize("fused", PATHS)


def from_package(package, name, **options):
    """Return a maker of an optimizer of another package; it skips the test if the package is not installed."""

    def make(params):
        module = pytest.importorskip(package)
        return getattr(module, name)(params, **options)

    return make


def schedule_free(params):
    optimizer = pytest.importorskip("schedulefree").AdamWScheduleFree(params, lr=1e-2, warmup_steps=5)
    optimizer.train()
    return optimizer


INNER = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
    "Muon": lambda params: torch.optim.Muon(params, lr=1e-2),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-2),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=1e-2),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-3),
    "schedule-free": schedule_free,
    "Lion": from_package("lion_pytorch", "Lion", lr=1e-3),
    "8-bit AdamW": from_package("torchao.optim", "AdamW8bit", lr=1e-2),
}
CONTROLS = {
    1: lambda: ux.EpsilonGap(0.2),
    3: lambda: {name: ux.EpsilonGap(0.6, rate=0.05) for name in ("first", "second", "third")},
}


def network(inner: str = "") -> nn.Module:
    """Return layers without biases, since Muon accepts matrices only; large ones for 8-bit states."""
    torch.manual_seed(0)
    width = 1024 if inner == "8-bit AdamW" else 16  # torchao quantizes states from 4096 elements on
    return nn.Sequential(nn.Linear(6, width, bias=False), nn.Tanh(), nn.Linear(width, 4, bias=False))


def batch(index: int, size: int = 16) -> torch.Tensor:
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(index))


def objective(net: nn.Module, index: int) -> torch.Tensor:
    inputs = batch(index + 100_000)
    return (net(inputs) - 2 * inputs[:, :4]).square().mean()


def constraint(net: nn.Module, index: int, which: int = 0) -> torch.Tensor:
    """Return the error of one or all outputs as a prediction of 0; it rises while the objective falls."""
    outputs = net(batch(index))
    return (outputs if which == 0 else outputs[:, which - 1]).square().mean()


def names_of(optimizer) -> list:
    return list(optimizer.control) if isinstance(optimizer.control, dict) else [None]


def hold_all(net, optimizer, index) -> list[list[torch.Tensor]]:
    """Hold every constraint; return copies of their gradients."""
    grads = []
    for number, name in enumerate(names_of(optimizer)):
        value = constraint(net, index, which=number + 1 if name else 0)
        value.backward()
        grads.append([p.grad.clone() for p in net.parameters()])
        optimizer.hold_constraint(value, name)
    return grads


def train(net, optimizer, start=0, steps=10, held=True) -> None:
    for index in range(start, start + steps):
        if held:
            hold_all(net, optimizer, index)
        objective(net, index).backward()
        optimizer.step()
        optimizer.zero_grad()


def every_stats(optimizer) -> list:
    return list(optimizer.stats.values()) if isinstance(optimizer.control, dict) else [optimizer.stats]


def wrapped(inner="AdamW", constraints=1, **options):
    net = network(inner)
    return net, ux.EpsilonWrapper(INNER[inner](net.parameters()), CONTROLS[constraints](), **options)


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    for mine, its in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, its)


# --- The promise ---


def promised(net, optimizer, index):
    """Take a step; return for each constraint ⟨a, θ_before − θ⟩ − Ψ, its rounding error, and λ."""
    before = [p.detach().double().clone() for p in net.parameters()]
    grads = hold_all(net, optimizer, index)
    objective(net, index).backward()
    optimizer.step()
    optimizer.zero_grad()
    moved = [b - p.detach().double() for b, p in zip(before, net.parameters(), strict=True)]
    for name, grad, stats in zip(names_of(optimizer), grads, every_stats(optimizer), strict=True):
        key = f"constraint_ema.{name}" if name else "constraint_ema"
        average = [optimizer.state[p].get(key, g) for p, g in zip(net.parameters(), grad, strict=True)]
        achieved = sum((a.double() * m).sum().item() for a, m in zip(average, moved, strict=True))
        terms = zip(average, before, moved, strict=True)
        size = sum((a.double().abs() * (b.abs() + m.abs())).sum() for a, b, m in terms)
        psi = stats.psi.item() - stats.shortfall.item()
        yield achieved - optimizer.param_groups[0]["lr"] * psi, 1e-6 * size.item(), stats


# Every inner optimizer has one and three constraints, and an average and none.
@pytest.mark.parametrize(("inner", "constraints", "average"), pairwise(list(INNER), [1, 3], [0.0, None]))
def test_every_step_decreases_every_constraint_as_promised(inner, constraints, average):
    net, optimizer = wrapped(inner, constraints, constraint_grad_ema=average)
    active = short = 0
    for index in range(300):
        for excess, rounding, stats in promised(net, optimizer, index):
            assert excess >= -rounding
            active += stats.lam.item() > 0
            short += stats.shortfall.item() > 1e-4 * abs(stats.psi.item()) + 1e-6
    assert active > 30
    assert short == 0


# --- A float64 reference ---


def multipliers(gram, demands):
    """Return λ ≥ 0 with Gλ ≥ b and λᵀ(Gλ − b) = 0, by trying every active set."""
    count = len(demands)
    for size in range(count + 1):
        for active in itertools.combinations(range(count), size):
            lam, rows = np.zeros(count), list(active)
            if rows:
                lam[rows] = np.linalg.solve(gram[np.ix_(rows, rows)], demands[rows])
            if (lam >= 0).all() and (gram @ lam >= demands - 1e-12 * np.abs(demands).max()).all():
                return lam
    raise AssertionError("no active set fits")


@each_path
@pytest.mark.parametrize("constraints", [1, 3])
def test_the_correction_is_the_textbooks(constraints, fused):
    """Two groups with different learning rates; the inner optimizer runs beside the wrapper in float64."""
    net, beta2, eps, weight = network(), 0.99, 1e-6, 0.3
    params = list(net.parameters())
    groups = [{"params": params[:1], "lr": 0.05}, {"params": params[1:], "lr": 0.01}]
    optimizer = ux.EpsilonWrapper(
        torch.optim.SGD(groups, momentum=0.9), CONTROLS[constraints](),
        beta2=beta2, eps=eps, constraint_weight=weight, constraint_grad_ema=0, fused=fused,
    )  # fmt: skip
    lr = np.concatenate([np.full(params[0].numel(), 0.05), np.full(params[1].numel(), 0.01)])

    def flat(tensors):
        return np.concatenate([t.detach().double().flatten().numpy() for t in tensors])

    momentum, v, carried, active = 0.0, 0.0, np.zeros(constraints), 0
    for index in range(30):
        theta = flat(params)
        a = np.stack([flat(grads) for grads in hold_all(net, optimizer, index)])
        objective(net, index).backward()
        seen = flat([p.grad for p in params]) + carried @ a  # the gradient of the Lagrangian
        optimizer.step()
        np.testing.assert_allclose(flat([p.grad for p in params]), seen, rtol=2e-5, atol=2e-6)
        optimizer.zero_grad()
        momentum, v = 0.9 * momentum + seen, beta2 * v + (1 - beta2) * seen**2
        metric = np.sqrt(v / (1 - beta2 ** (index + 1)) + weight * (a**2).sum(0)) + eps
        size = np.sqrt((momentum**2 * metric).sum() / (seen**2 / metric).sum())
        mean_lr = (lr * a**2 / metric).sum(1) / (a**2 / metric).sum(1)
        decrease = mean_lr * np.array([stats.psi.item() for stats in every_stats(optimizer)])
        without = momentum - size * carried @ a / metric
        lam = multipliers((a * lr / metric) @ a.T, decrease - a @ (lr * without))
        active += (lam > 0).sum()
        np.testing.assert_allclose(flat(params), theta - lr * (without + lam @ a / metric), rtol=2e-5, atol=2e-6)
        lam /= size
        np.testing.assert_allclose([s.lam.item() for s in every_stats(optimizer)], lam, rtol=2e-4, atol=2e-5)
        gram = (a * lr / metric) @ a.T
        slack = np.minimum(decrease - a @ (lr * without) - gram @ (size * lam), 0)
        carried = np.maximum(carried + 0.1 * (lam + slack / np.diag(gram) / size - carried), 0)
    assert active > 10


# --- Where a run comes to rest ---


@pytest.mark.parametrize(
    "inner",
    [
        lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9),
        lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.0),
        lambda params: torch.optim.NAdam(params, lr=0.05),
        lambda params: torch.optim.Muon(params, lr=0.05, weight_decay=0.0),
        lambda params: torch.optim.RMSprop(params, lr=0.02),
    ],
    ids=["SGD", "AdamW", "NAdam", "Muon", "RMSprop"],
)
def test_a_run_rests_at_the_constrained_optimum_whatever_the_inner_metric_is(inner):
    """A quadratic with one linear constraint; its optimum and multiplier follow from the Lagrangian."""
    generator, epsilon = torch.Generator().manual_seed(0), -1.0
    curvature = 0.3 + 3 * torch.rand(4, 6, generator=generator)
    centre, normal = torch.randn(2, 4, 6, generator=generator)
    lam = ((normal * centre).sum() - epsilon) / (normal**2 / curvature).sum()
    best = centre - lam * normal / curvature
    x = nn.Parameter(torch.zeros(4, 6))
    optimizer = ux.EpsilonWrapper(inner([x]), ux.EpsilonGap(epsilon))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 400)
    for _ in range(400):
        value = (normal * x).sum()
        value.backward()
        optimizer.hold_constraint(value)
        (curvature * (x - centre).square() / 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert (x - best).norm() < 2e-3 * best.norm()
    assert abs(optimizer.stats.lam - lam) < 2e-3 * lam


# --- Steps that change nothing ---


@pytest.mark.parametrize("inner", INNER)
def test_a_step_without_a_held_constraint_is_the_inner_optimizers(inner):
    net, optimizer = wrapped(inner)
    alone = network(inner)
    train(net, optimizer, held=False)
    train(alone, INNER[inner](alone.parameters()), held=False)
    assert_equal(net, alone)


@each_path
def test_a_step_with_a_satisfied_constraint_is_the_inner_optimizers(fused):
    net, alone = network(), network()
    optimizer = ux.EpsilonWrapper(INNER["AdamW"](net.parameters()), ux.EpsilonGap(1e6), fused=fused)
    train(net, optimizer)
    assert optimizer.stats.lam.item() == 0
    train(alone, INNER["AdamW"](alone.parameters()), held=False)
    assert_equal(net, alone)


# --- Groups, schedulers, hooks, closures ---


@pytest.mark.parametrize("owner", ["wrapper", "inner"])
def test_a_scheduler_of_either_object(owner):
    net, optimizer = wrapped()
    other, fixed = wrapped()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer if owner == "wrapper" else optimizer.optimizer, 2, gamma=0.5)
    for index in range(6):
        train(net, optimizer, index, 1)
        scheduler.step()
        fixed.param_groups[0]["lr"] = 1e-2 * 0.5 ** (index // 2)
        train(other, fixed, index, 1)
    assert optimizer.param_groups[0]["lr"] == optimizer.optimizer.param_groups[0]["lr"] == 1e-2 / 8
    assert_equal(net, other)


@pytest.mark.parametrize("owner", ["wrapper", "inner"])
def test_a_group_that_is_added_later(owner):
    net = network()
    first, second = net.parameters()
    optimizer = ux.EpsilonWrapper(torch.optim.AdamW([first], lr=1e-2), CONTROLS[1]())
    train(net, optimizer, steps=2)
    before = second.detach().clone()
    (optimizer if owner == "wrapper" else optimizer.optimizer).add_param_group({"params": [second], "lr": 1e-3})
    assert optimizer.param_groups is optimizer.optimizer.param_groups
    train(net, optimizer, 2, 2)
    assert not torch.equal(second, before)
    assert "epsilon_avg_sq" in optimizer.state[second]


def test_hooks_run_once_per_step():
    net, optimizer = wrapped()
    calls = []
    for name, owner in (("wrapper", optimizer), ("inner", optimizer.optimizer)):
        owner.register_step_pre_hook(lambda *_, name=name: calls.append(f"{name} pre"))
        owner.register_step_post_hook(lambda *_, name=name: calls.append(f"{name} post"))
    train(net, optimizer, steps=2)
    assert calls == ["wrapper pre", "inner pre", "inner post", "wrapper post"] * 2


def test_a_closure():
    (net, optimizer), (other, plain) = wrapped(), wrapped()
    for index in range(5):
        hold_all(net, optimizer, index)

        def closure(index=index):
            optimizer.zero_grad()
            loss = objective(net, index)
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == objective(other, index).item()
        optimizer.zero_grad()
        train(other, plain, index, 1)
    assert_equal(net, other)


def with_closure(held_inside):
    theta = nn.Parameter(torch.ones(3))
    optimizer = ux.EpsilonWrapper(torch.optim.SGD([theta], lr=0.1), control=ux.EpsilonGap(0.1))

    def hold():
        optimizer.zero_grad()
        c = theta.square().sum()
        c.backward()
        optimizer.hold_constraint(c)

    def closure():
        if held_inside:
            hold()
        loss = (theta - 2).square().sum()
        loss.backward()
        return loss

    for _ in range(4):
        if not held_inside:
            hold()
        assert optimizer.step(closure) is not None
        assert optimizer.stats.lam.item() > 0
    return theta


def test_a_closure_may_hold_the_constraint():
    assert torch.equal(with_closure(held_inside=True), with_closure(held_inside=False))


@pytest.mark.parametrize("wrong", ["an optimizer with constraints", "a model"])
def test_what_cannot_be_wrapped(wrong):
    net = network()
    inner = net if wrong == "a model" else ux.EpsilonSGD(net.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"wrap a torch.optim.Optimizer without constraints"):
        ux.EpsilonWrapper(inner, ux.EpsilonGap(0.1))


# --- Checkpoints ---


def saved(state, weights_only=False):
    """Return what is loaded from a file that the state was saved to."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


def through_state_dict(net, optimizer):
    weights, state = saved((net.state_dict(), optimizer.state_dict()), weights_only=True)
    other, restored = wrapped(constraints=len(names_of(optimizer)))
    other.load_state_dict(weights)
    restored.load_state_dict(state)
    return other, restored


def through_pickle(net, optimizer):
    return pickle.loads(pickle.dumps((net, optimizer)))


def through_deepcopy(net, optimizer):
    return copy.deepcopy((net, optimizer))


def through_dcp(net, optimizer):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    other, restored = wrapped(constraints=len(names_of(optimizer)))
    with tempfile.TemporaryDirectory() as folder:
        weights, state = get_state_dict(net, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder, no_dist=True)
        weights, state = get_state_dict(other, restored)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder, no_dist=True)
    set_state_dict(other, restored, model_state_dict=weights, optim_state_dict=state)
    return other, restored


@pytest.mark.parametrize("constraints", [1, 3])
@pytest.mark.parametrize("copied", [through_state_dict, through_pickle, through_deepcopy, through_dcp])
def test_training_continues_in_a_copy(copied, constraints):
    net, optimizer = wrapped(constraints=constraints)
    train(net, optimizer, steps=7)
    other, restored = copied(net, optimizer)
    assert restored.param_groups is restored.optimizer.param_groups
    for model, continued in ((net, optimizer), (other, restored)):
        train(model, continued, 7, 7)
    assert any(stats.lam.item() > 0 for stats in every_stats(optimizer))
    assert_equal(net, other)
    torch.testing.assert_close(every_stats(restored), every_stats(optimizer), rtol=0, atol=0)


@pytest.mark.parametrize("copied", [through_state_dict, through_pickle, through_deepcopy])
def test_what_is_held_is_in_the_copy(copied):
    net, optimizer = wrapped()
    train(net, optimizer, steps=12)
    hold_all(net, optimizer, 12)
    other, restored = copied(net, optimizer)
    for model, continued in ((net, optimizer), (other, restored)):
        objective(model, 12).backward()
        continued.step()
    assert optimizer.stats.lam.item() > 0
    assert_equal(net, other)


def test_saving_changes_nothing():
    """``get_optimizer_state_dict`` takes a step of an optimizer that has no state; this one always has."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    (net, optimizer), (other, plain) = wrapped(), wrapped()
    for index in range(6):
        train(net, optimizer, index, 1, held=index > 3)
        get_optimizer_state_dict(net, optimizer)
        train(other, plain, index, 1, held=index > 3)
    assert_equal(net, other)


@pytest.mark.parametrize("inner", ["SGD", "AdamW", "Muon", "8-bit AdamW"])
def test_a_checkpoint_of_the_inner_optimizer_loads(inner):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    alone = network(inner)
    before = INNER[inner](alone.parameters())
    train(alone, before, steps=5, held=False)
    net, optimizer = wrapped(inner)
    net.load_state_dict(alone.state_dict())
    optimizer.load_state_dict(saved(before.state_dict()))  # torch would share the tensors
    get_optimizer_state_dict(net, optimizer)  # takes no step
    train(net, optimizer, 5, 5, held=False)
    train(alone, before, 5, 5, held=False)
    assert_equal(net, alone)
    train(net, optimizer, 10, 5)
    assert optimizer.stats.lam.item() > 0


# --- GradScaler and bad values ---


def scaled_step(net, optimizer, scaler, index, spoil=None, unscale_first=False):
    value = constraint(net, index)
    scaler.scale(value).backward()
    if spoil == "constraint":
        net[0].weight.grad[0, 3] = float("inf")
    optimizer.hold_constraint(value, scaler=scaler)
    scaler.scale(objective(net, index)).backward()
    if spoil == "objective":
        net[0].weight.grad[0, 3] = float("inf")
    if unscale_first:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("inner", ["AdamW", "Muon"])
def test_scaled_training_equals_unscaled(inner, unscale_first):
    (net, optimizer), (other, plain) = wrapped(inner), wrapped(inner)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index in range(10):
        scaled_step(net, optimizer, scaler, index, unscale_first=unscale_first)
    train(other, plain)
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    assert optimizer.stats.lam.item() == pytest.approx(plain.stats.lam.item(), rel=1e-4)


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("spoil", ["constraint", "objective"])
def test_an_overflow_skips_the_step_and_leaves_no_trace(spoil, unscale_first):
    (net, optimizer), (other, plain) = wrapped(), wrapped()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index in range(6):
        if index == 3:
            before = [p.detach().clone() for p in net.parameters()]
            scaled_step(net, optimizer, scaler, index, spoil, unscale_first)
            assert all(map(torch.equal, before, net.parameters()))
            assert scaler.get_scale() == 512.0
            assert optimizer.skipped_steps.item() == 1
            assert optimizer.stats.skipped
        scaled_step(net, optimizer, scaler, index, unscale_first=unscale_first)
    train(other, plain, steps=6)
    assert optimizer.skipped_steps.item() == 1
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_an_overflow_without_a_held_constraint():
    net, optimizer = wrapped()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = [p.detach().clone() for p in net.parameters()]
    scaler.scale(objective(net, 0)).backward()
    net[0].weight.grad[0, 3] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(map(torch.equal, before, net.parameters()))
    assert scaler.get_scale() == 512.0
    assert not any(state.get("step", 0) for state in optimizer.optimizer.state.values())


@each_path
@pytest.mark.parametrize("where", ["value", "constraint", "objective"])
def test_a_nan_restores_the_parameters_and_is_counted(where, fused):
    net, optimizer = wrapped(inner="SGD", fused=fused)
    train(net, optimizer, steps=3)
    before = [p.detach().clone() for p in net.parameters()]
    own = copy.deepcopy([optimizer.state[p] for p in net.parameters()])
    value = constraint(net, 3)
    value.backward()
    if where == "constraint":
        net[2].weight.grad[0, 0] = float("nan")
    optimizer.hold_constraint(value * float("nan") if where == "value" else value)
    objective(net, 3).backward()
    if where == "objective":
        net[2].weight.grad[0, 0] = float("nan")
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.skipped_steps.item() == 1
    assert optimizer.stats.skipped
    assert all(map(torch.equal, before, net.parameters()))
    for state, param in zip(own, net.parameters(), strict=True):
        assert all(torch.equal(value, optimizer.state[param][key]) for key, value in state.items())
    if where != "objective":
        train(net, optimizer, 4, 3)
        assert all(p.isfinite().all() for p in net.parameters())
        assert optimizer.skipped_steps.item() == 1


# --- torch.compile ---


def test_a_compiled_training_step():
    torch._dynamo.reset()
    (net, optimizer), (other, plain) = wrapped(), wrapped()
    compiled = torch.compile(lambda index: train(net, optimizer, index, 1), backend="eager")
    for index in range(5):
        compiled(index)
        train(other, plain, index, 1)
    assert plain.stats.lam.item() > 0
    assert_equal(net, other)
