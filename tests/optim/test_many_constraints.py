"""Optimizers with several constraints: an independent float64 reference, the promise of every step, and bookkeeping."""

import copy
import io
import itertools
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from steps import PATHS, needs_kernels
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import unlearn_ext as ux

NAN, INF = float("nan"), float("inf")


def memoryless(epsilon, rate=0.1, **options):
    """Return a control whose Ψ = rate·sign(c − ε)·|c − ε|² depends on this step alone."""
    return ux.EpsilonGap(epsilon, rate=rate, delta=2.0, cap=INF, **options)


CLASSES = [ux.EpsilonSGD, ux.EpsilonAdamW]
each_path = pytest.mark.parametrize("fused", PATHS)
each_class = pytest.mark.parametrize("cls", CLASSES)


# --- The textbook step: numpy and float64, none of the package's code ---


def shortest(normals, demands):
    """Return the shortest x with ⟨n_i, x⟩ ≥ b_i, by NNLS (Lawson and Hanson, chapter 23)."""
    system = np.vstack([np.asarray(normals).T, demands])
    right = np.eye(len(system))[-1]
    residual = system @ nnls(system, right, maxiter=10_000)[0] - right
    return -residual[:-1] / residual[-1]


@dataclass
class Textbook:
    """SGD or AdamW under constraints, for one vector; the arguments are torch's, ``lr`` one number per element."""

    theta: np.ndarray
    lr: np.ndarray
    adam: bool
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    maximize: bool = False
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    constraint_weight: float = 1.0
    m: np.ndarray | None = None
    v: np.ndarray = field(default=0.0)
    t: int = 0

    def direction(self, g2, a):
        """Return diag P and d."""
        self.t += 1
        g2 = -g2 if self.maximize else g2
        if not self.adam:
            g2 = g2 + self.weight_decay * self.theta
            if not self.momentum:
                return np.ones_like(g2), g2
            self.m = g2 if self.m is None else self.momentum * self.m + g2
            return np.ones_like(g2), g2 + self.momentum * self.m if self.nesterov else self.m
        beta1, beta2 = self.betas
        self.m = beta1 * (0 if self.m is None else self.m) + (1 - beta1) * g2
        self.v = beta2 * self.v + (1 - beta2) * (g2**2 + self.constraint_weight * sum(x**2 for x in a))
        p = np.sqrt(self.v / (1 - beta2**self.t)) + self.eps
        return p, self.m / (1 - beta1**self.t) / p + self.weight_decay * self.theta

    def step(self, g2, a, decreases, equality=()):
        """Take the step with Σμ⟨a_i, g⟩ ≥ Ψ_i, or = Ψ_i for an equality; return g."""
        p, d = self.direction(g2, a)
        normals = [x * np.sqrt(self.lr / p) for x in a]
        demands = [psi - (self.lr * x) @ d for x, psi in zip(a, decreases, strict=True)]
        for i in equality:
            normals.append(-normals[i]), demands.append(-demands[i])
        x = shortest(normals, demands) if max(demands, default=-1) > 0 else 0.0
        g = d + x / np.sqrt(self.lr * p)
        self.theta = self.theta - self.lr * g
        return g


OPTIONS = {
    "sgd": (ux.EpsilonSGD, {}),
    "momentum": (ux.EpsilonSGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (ux.EpsilonSGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    "adamw": (ux.EpsilonAdamW, {"weight_decay": 0.1, "betas": (0.8, 0.9), "constraint_weight": 0.3}),
    "adamw that maximizes": (ux.EpsilonAdamW, {"weight_decay": 0.0, "maximize": True}),
}
SIZES, RATES, GAP_RATE = (7, 30, 23), (0.05, 0.05, 0.01), 0.2


def numbers(seed, size):
    return np.random.default_rng(seed).standard_normal(size)


def put(params, flat):
    for p, part in zip(params, np.split(flat, np.cumsum([p.numel() for p in params])[:-1]), strict=True):
        p.grad = torch.from_numpy(part).to(p.dtype)


def flat(params):
    return np.concatenate([p.detach().double().numpy() for p in params])


def grouped(dtype):
    """Return three parameters, and two groups of them with unlike learning rates."""
    params = [nn.Parameter(torch.from_numpy(numbers(i, n)).to(dtype)) for i, n in enumerate(SIZES)]
    return params, [{"params": params[:2], "lr": RATES[0]}, {"params": params[2:], "lr": RATES[2]}]


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_equals_the_textbooks(name, count, dtype):
    """float32: the kernels up to eight constraints; float64: the reference."""
    cls, options = OPTIONS[name]
    params, groups = grouped(dtype)
    names = [f"c{i}" for i in range(count)]
    equality = [i for i in range(count) if i % 4 == 3]
    control = {n: memoryless(0.5, GAP_RATE, equality=i in equality) for i, n in enumerate(names)}
    optimizer = cls(groups, control=control, constraint_grad_ema=0.0, **options)
    book = Textbook(flat(params), np.repeat(RATES, SIZES), cls is ux.EpsilonAdamW, **options)
    for step in range(4):
        values = numbers(100 + step, count).round(4) + 1.0  # some are below ε
        a = [numbers(1000 * step + i, sum(SIZES)) for i in range(count)]
        g2 = numbers(1000 * step + 99, sum(SIZES))
        if dtype is torch.float32:
            a, g2 = [x.astype(np.float32).astype(float) for x in a], g2.astype(np.float32).astype(float)
        for n, value, grad in zip(names, values, a, strict=True):
            put(params, grad)
            optimizer.hold_constraint(torch.tensor(value, dtype=torch.float64), n)
        put(params, g2)
        optimizer.step()
        demands = GAP_RATE * (values - 0.5) * np.abs(values - 0.5)
        g = book.step(g2, a, demands, equality)
        tolerance = 1e-7 if dtype is torch.float64 else 5e-5
        np.testing.assert_allclose(flat(params), book.theta, rtol=tolerance, atol=tolerance)
        for i, n in enumerate(names):
            stats, demand = optimizer.stats[n], demands[i]
            assert stats.constraint.item() == values[i]
            assert (stats.lam.item() >= 0) or i in equality
            reached = (book.lr * a[i]) @ g
            assert reached >= demand - 1e-9
            assert abs(stats.shortfall.item()) * min(RATES) <= 1e-4 * (1 + abs(demand))
            if stats.lam.item() > 1e-3:  # an active constraint is met exactly
                assert reached == pytest.approx(demand, abs=1e-9)


def test_the_multiplier_is_the_lagrangians():
    """With f2 = ½‖θ − b‖² and linear c_i, a settled run has ∇f2 + Σ lam_i ∇c_i = 0, whatever the momentum."""
    b, a = torch.tensor([2.0, 3.0, -1.0]), torch.eye(3)[:2] + 0.3
    for momentum in (0.0, 0.9):
        theta = nn.Parameter(torch.zeros(3))
        control = {"x": ux.EpsilonGap(0.5), "y": ux.EpsilonGap(0.25)}
        optimizer = ux.EpsilonSGD([theta], lr=0.05, momentum=momentum, control=control)
        for _ in range(600):
            for name, row in zip(control, a, strict=True):
                c = theta @ row
                c.backward()
                optimizer.hold_constraint(c, name)
            theta.grad = theta.detach() - b
            optimizer.step()
            optimizer.zero_grad()
        lam = torch.stack([optimizer.stats[name].lam for name in control]).float()
        assert (lam > 0).all()
        torch.testing.assert_close(theta.detach() - b + lam @ a, torch.zeros(3), rtol=0, atol=2e-4)
        torch.testing.assert_close(theta.detach() @ a.T, torch.tensor([0.5, 0.25]), rtol=1e-4, atol=1e-4)


# --- The promise ---


def network(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 24), nn.Tanh(), nn.Linear(24, outputs))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_every_step_of_a_run_keeps_every_promise(name, count):
    """Σ_k μ_k⟨∇c_i, g⟩_k ≥ Ψ_i in every step, where c_i is what is left of output i.

    With δ = ½, Ψ_i = rate·sign(c_i − ε_i)·√|c_i − ε_i| whatever happened before.
    """
    cls, options = OPTIONS[name]
    net = network(count)
    groups = [{"params": net[0].parameters(), "lr": 3e-3}, {"params": net[2].parameters(), "lr": 1e-2}]
    epsilon = {f"c{i}": 0.02 * (i + 1) for i in range(count)}
    control = {n: ux.EpsilonGap(e, rate=0.02, delta=0.5, cap=INF) for n, e in epsilon.items()}
    optimizer = cls(groups, control=control, constraint_grad_ema=0.0, **options)
    optimizer.param_groups[0]["maximize"] = optimizer.param_groups[1]["maximize"] = False
    params, data, together = list(net.parameters()), torch.Generator().manual_seed(2), 0
    for _ in range(30):
        x = torch.randn(32, 7, generator=data)
        held = {}
        for n, c in zip(epsilon, net(x).square().mean(0), strict=True):
            held[n] = c.item(), [g.double() for g in torch.autograd.grad(c, params, retain_graph=True)]
            for p, g in zip(params, held[n][1], strict=True):
                p.grad = g.float()
            optimizer.hold_constraint(c, n)
        (net(x + 0.1) - x[:, :1].sin()).square().mean().backward()
        before = [p.detach().double() for p in params]
        optimizer.step()
        optimizer.zero_grad()
        change = [p.detach().double() - q for p, q in zip(params, before, strict=True)]
        for n, (c, a) in held.items():
            first_order = sum((g * d).sum() for g, d in zip(a, change, strict=True)).item()
            rounding = 2e-6 * sum(g.abs().sum() for g in a).item() * max(p.abs().max() for p in before).item()
            gap = c - epsilon[n]
            assert -first_order >= 0.02 * np.sign(gap) * abs(gap) ** 0.5 - rounding
        together += sum(optimizer.stats[n].lam.item() > 0 for n in epsilon) >= min(2, count)
    assert together > 10  # several constraints were active in one step


@each_class
@each_path
def test_every_constraint_settles_at_its_epsilon(cls, fused):
    theta, wanted = nn.Parameter(torch.ones(12)), torch.linspace(0.5, 1.5, 12)
    epsilon = {"low": 0.1, "middle": 0.3, "high": 0.6}
    optimizer = cls([theta], lr=0.01, weight_decay=0.0, fused=fused, control={})
    optimizer.control = {n: ux.EpsilonGap(e) for n, e in epsilon.items()}
    for _ in range(300):
        for n, part in zip(epsilon, theta.split(4), strict=True):
            c = part.square().mean()
            c.backward()
            optimizer.hold_constraint(c, n)
        (theta - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for part, e in zip(theta.detach().split(4), epsilon.values(), strict=True):
        assert part.square().mean().item() == pytest.approx(e, rel=0.01)


def test_an_equality_reaches_epsilon_from_below_and_an_inequality_does_not():
    theta = nn.Parameter(torch.full((4,), 0.1))
    control = {"equal": ux.EpsilonGap(0.5, equality=True), "at most": ux.EpsilonGap(0.5)}
    optimizer = ux.EpsilonSGD([theta], lr=0.1, control=control)
    for _ in range(200):
        for n, part in zip(control, theta.split(2), strict=True):
            c = part.square().sum()
            c.backward()
            optimizer.hold_constraint(c, n)
        optimizer.step()
        optimizer.zero_grad()
    equal, at_most = (part.square().sum().item() for part in theta.detach().split(2))
    assert equal == pytest.approx(0.5, rel=1e-4)
    assert at_most == pytest.approx(0.02, rel=1e-4)  # nothing moved it
    assert optimizer.stats["at most"].lam.item() == 0


@each_path
def test_an_equality_of_one_constraint(fused):
    p = nn.Parameter(torch.zeros(2))
    optimizer = ux.EpsilonSGD([p], lr=1.0, control=ux.EpsilonGap(1.0, rate=0.5, equality=True), fused=fused)
    p.grad = torch.tensor([2.0, 0.0])
    optimizer.hold_constraint(torch.tensor(0.0))
    optimizer.step()
    assert p.tolist() == [0.25, 0.0]  # c rises by ½
    assert optimizer.stats.lam.item() == -0.125
    assert not ux.EpsilonGap(1.0).equality
    with pytest.raises(TypeError, match="positional"):
        ux.EpsilonGap(1.0, 0.1, 1.0, None, 0.0, None, True)


# --- Demands that cannot all be met ---


def one_step(gradients, values, g2=None, epsilon=0.0, rate=1.0, fused=None, cls=ux.EpsilonSGD, **options):
    """Take one step at θ = 0 with lr = 1 and Ψ_i = values_i; return θ and the optimizer."""
    gradients = {n: torch.as_tensor(g, dtype=torch.float32) for n, g in gradients.items()}
    p = nn.Parameter(torch.zeros(len(next(iter(gradients.values())))))
    control = {n: ux.EpsilonGap(epsilon, rate=rate, cap=INF) for n in gradients}
    optimizer = cls([p], lr=1.0, control=control, fused=fused, **options)
    for (n, gradient), value in zip(gradients.items(), values, strict=True):
        p.grad = gradient.clone()
        optimizer.hold_constraint(torch.tensor(value), n)
    p.grad = torch.zeros_like(p) if g2 is None else torch.as_tensor(g2, dtype=torch.float32)
    optimizer.step()
    return p.detach(), optimizer


@each_path
def test_opposite_demands_are_violated_as_little_as_possible(fused):
    """⟨a, g⟩ ≥ 1 and ⟨−a, g⟩ ≥ 0 miss by ½ each, the least sum of squares; the third is met."""
    theta, optimizer = one_step(
        {"down": [1.0, 0.0, 0.0], "up": [-1.0, 0.0, 0.0], "aside": [0.0, 1.0, 0.0]}, [1.0, 0.0, 2.0], fused=fused
    )
    torch.testing.assert_close(-theta, torch.tensor([0.5, 2.0, 0.0]), rtol=0, atol=1e-3)
    stats = optimizer.stats
    assert stats["down"].shortfall.item() == pytest.approx(0.5, abs=1e-3)
    assert stats["up"].shortfall.item() == pytest.approx(0.5, abs=1e-3)
    assert abs(stats["aside"].shortfall.item()) < 1e-3
    assert not stats["down"].skipped


@each_path
@each_class
@pytest.mark.parametrize("tilt", [0.0, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_contradicting_demands_give_a_bounded_step(cls, fused, tilt, count):
    """Nearly opposite gradients could only be met by a huge step; it is at most 50 times the norm of the demands.

    Both norms are those of the metric, and P ≥ 1 here.
    """
    gradients = {f"c{i}": [(-1.0) ** i, tilt * (1 + i), 0.0] for i in range(count)}
    options = {"weight_decay": 0.0, "betas": (0.0, 0.0), "eps": 1.0} if cls is ux.EpsilonAdamW else {}
    theta, optimizer = one_step(gradients, [1.0] * count, fused=fused, cls=cls, **options)
    assert theta.isfinite().all()
    stats = optimizer.stats.values()
    assert theta.norm() <= 50.1 * sum(1 / s.sq_constraint for s in stats).sqrt()
    assert all(torch.stack(list(s)).isfinite().all() for s in stats)
    assert not next(iter(stats)).skipped
    for s, gradient in zip(stats, gradients.values(), strict=True):
        short = 1.0 + (torch.tensor(gradient) @ theta).item()
        assert s.shortfall.item() == pytest.approx(max(short, 0.0), abs=2e-3 * (1 + theta.norm().item()))


@each_path
def test_a_duplicate_changes_nothing(fused):
    a, g2 = [3.0, 0.0, 4.0], [-1.0, 2.0, 0.5]
    alone, first = one_step({"a": a}, [2.0], g2, fused=fused)
    for count in (2, 3, 8):
        theta, optimizer = one_step({f"c{i}": a for i in range(count)}, [2.0] * count, g2, fused=fused)
        torch.testing.assert_close(theta, alone, rtol=1e-5, atol=1e-5)
        total = sum(s.lam.item() for s in optimizer.stats.values())
        assert total == pytest.approx(first.stats["a"].lam.item(), rel=1e-5)
        assert all(abs(s.shortfall.item()) < 1e-5 for s in optimizer.stats.values())


@each_path
def test_of_two_demands_on_one_gradient_the_larger_counts(fused):
    theta, optimizer = one_step({"less": [1.0, 0.0], "more": [1.0, 0.0]}, [1.0, 3.0], fused=fused)
    torch.testing.assert_close(-theta, torch.tensor([3.0, 0.0]))
    assert optimizer.stats["less"].lam.item() == 0
    assert optimizer.stats["more"].lam.item() == 3


@each_path
@each_class
def test_a_gradient_of_zero_cannot_be_demanded(cls, fused):
    """Its λ is 0, it is short of all that it demands, and the others are met as without it."""
    gradients = {"one": [1.0, 0.0, 2.0], "none": [0.0, 0.0, 0.0], "two": [0.0, 1.0, 1.0]}
    theta, optimizer = one_step(gradients, [1.0, 5.0, 2.0], fused=fused, cls=cls)
    del gradients["none"]
    without, _ = one_step(gradients, [1.0, 2.0], fused=fused, cls=cls)
    torch.testing.assert_close(theta, without)
    assert optimizer.stats["none"].lam.item() == 0
    assert optimizer.stats["none"].shortfall.item() == 5
    assert optimizer.stats["one"].shortfall.item() < 1e-5
    alone, optimizer = one_step(
        {"none": [0.0] * 3, "zero": [0.0] * 3}, [1.0, 2.0], [1.0, 2.0, 3.0], fused=fused, cls=cls
    )
    plain, _ = one_step({"none": [0.0] * 3}, [-1.0], [1.0, 2.0, 3.0], fused=fused, cls=cls)
    assert torch.equal(alone, plain)


@each_path
def test_limits(fused):
    gradients, g2 = {f"c{i}": numbers(i, 20) for i in range(3)}, numbers(9, 20)
    theta, optimizer = one_step(gradients, [9.0, 8.0, 7.0], g2, fused=fused, lambda_max=0.125)
    for name, a in gradients.items():
        stats = optimizer.stats[name]
        assert 0 <= stats.lam.item() <= 0.125
        assert stats.shortfall.item() == pytest.approx(stats.psi.item() + a @ theta.double().numpy(), abs=1e-4)
    assert max(s.lam.item() for s in optimizer.stats.values()) == 0.125
    theta, optimizer = one_step(gradients, [9.0, 8.0, 7.0], g2, fused=fused, max_norm=0.5)
    assert theta.norm().item() == pytest.approx(0.5, rel=1e-5)
    for name, a in gradients.items():
        stats = optimizer.stats[name]
        assert stats.scale.item() < 1
        assert stats.shortfall.item() == pytest.approx(stats.psi.item() + a @ theta.double().numpy(), abs=1e-4)


# --- Which constraints take part ---


class Loop:
    """Fixed gradients for named constraints; step ``index`` with the same names always gets the same numbers."""

    def __init__(self, cls=ux.EpsilonAdamW, names="abc", control=None, dtype=torch.float32, **options) -> None:
        self.params = [nn.Parameter(torch.from_numpy(numbers(i, n)).to(dtype)) for i, n in enumerate((9, 40))]
        control = {n: ux.EpsilonGap(0.5, rate=0.3) for n in names} if control is None else control
        extra = {"momentum": 0.9} if cls is ux.EpsilonSGD else {}
        self.optimizer = cls(self.params, lr=0.02, control=control, **extra, **options)

    def hold(self, index, name, value=None, spoil=None, scaler=None):
        put(self.params, numbers(1000 * index + ord(name[0]), 49))
        if spoil is not None:
            self.params[1].grad[7] = spoil
        self.optimizer.hold_constraint(torch.tensor(1.0 + ord(name[0]) / 100 if value is None else value), name, scaler)

    def step(self, index, names="abc", objective=True):
        for name in names:
            self.hold(index, name)
        put(self.params, numbers(1000 * index, 49))
        if not objective:
            self.optimizer.zero_grad()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def everything(self):
        """Return all that a step writes, as one list of tensors."""
        state = [t.clone() for p in self.params for _, t in sorted(self.optimizer.state[p].items())]
        kept = self.optimizer.state_dict()["param_groups"][0]["constraint"]
        numbers = [t.clone() for name, t in sorted(kept.items()) if name != "skipped_steps"]
        return [*(p.detach().clone() for p in self.params), *state, *numbers]


def assert_equal(first, second):
    assert len(first) == len(second)
    for mine, its in zip(first, second, strict=True):
        assert torch.equal(mine, its)


@each_path
@each_class
def test_one_that_is_not_held_takes_no_part(cls, fused):
    three, two = Loop(cls, "abc", fused=fused), Loop(cls, "ac", fused=fused)
    for index in range(4):
        for loop in (three, two):
            loop.step(index, "ac")
    assert_equal([p.detach() for p in three.params], [p.detach() for p in two.params])
    stats = three.optimizer.stats
    assert stats["b"].lam == stats["b"].psi == stats["b"].dot == stats["b"].sq_constraint == stats["b"].shortfall == 0
    assert stats["a"].lam > 0
    three.step(4, "b")
    assert three.optimizer.stats["b"].lam > 0
    assert three.optimizer.stats["a"].lam == three.optimizer.stats["a"].psi == 0


@each_path
@each_class
def test_a_step_without_any_is_torchs(cls, fused):
    loop, theirs = Loop(cls, fused=fused), Loop(cls)
    namesake = getattr(torch.optim, cls.__name__.removeprefix("Epsilon"))
    optimizer = namesake(theirs.params, lr=0.02, **({"momentum": 0.9} if cls is ux.EpsilonSGD else {}))
    for index in range(4):
        loop.step(index, "")
        put(theirs.params, numbers(1000 * index, 49))
        optimizer.step()
    np.testing.assert_allclose(flat(loop.params), flat(theirs.params), rtol=1e-5, atol=1e-6)


@each_path
@each_class
@pytest.mark.parametrize("names", ["ab", "abc", "abcdefgh", "abcdefghi"])
def test_no_order_changes_a_bit(cls, names, fused):
    if fused and len(names) > 8:
        pytest.skip("the kernels have 8 constraints")
    results = []
    for order in (names, names[::-1], names[1:] + names[:1]):
        loop = Loop(cls, order, fused=fused, constraint_grad_ema=0.5)
        for index in range(3):
            loop.step(index, order[::-1] if index == 1 else order)
        results.append(loop.everything())
    for other in results[1:]:
        assert_equal(results[0], other)


@each_path
@each_class
def test_constraints_may_be_added_and_removed_between_steps(cls, fused):
    """Without memory, each step equals that of an optimizer which had these constraints from the beginning."""
    changing, fixed = (
        Loop(cls, control={n: memoryless(0.5) for n in names}, fused=fused, constraint_grad_ema=0.0)
        for names in ("a", "abcd")
    )
    for index, names in enumerate(("a", "abc", "bcd", "bcd", "d", "", "ab")):
        changing.optimizer.control = {n: memoryless(0.5) for n in names}
        changing.step(index, names)
        fixed.step(index, names)
        assert set(changing.optimizer.stats) == set(names)
    assert_equal([p.detach() for p in changing.params], [p.detach() for p in fixed.params])


@each_path
def test_entries_of_the_dict_may_change_in_place(fused):
    loop, other = Loop(fused=fused), Loop(fused=fused)
    loop.step(0), other.step(0)
    loop.optimizer.control["b"].epsilon = 0.1
    loop.optimizer.control["c"] = ux.GradientNorm(alpha=0.2)
    loop.optimizer.control["d"] = ux.EpsilonGap(0.2)
    del loop.optimizer.control["a"]
    other.optimizer.control = {
        "b": ux.EpsilonGap(0.1, rate=0.3),
        "c": ux.GradientNorm(alpha=0.2),
        "d": ux.EpsilonGap(0.2),
    }
    loop.step(1, "bcd"), other.step(1, "bcd")
    assert_equal(loop.everything(), other.everything())
    assert loop.optimizer.stats["d"].psi.item() == pytest.approx(0.1 / 0.02 * (2.0 - 0.2), rel=1e-6)


@each_path
@each_class
def test_what_a_removed_constraint_remembered_is_forgotten(cls, fused):
    """Its average of ∇c too: added again, it is a new constraint; the others keep theirs."""
    loop, fresh = (Loop(cls, "ab", fused=fused, constraint_grad_ema=0.9) for _ in range(2))
    for index in range(3):
        loop.step(index, "ab")
        fresh.step(index, "b")
        fresh.params[0].data.copy_(loop.params[0].data), fresh.params[1].data.copy_(loop.params[1].data)
    gap = loop.optimizer.control.pop("a")
    loop.step(3, "b")
    assert not any("constraint_ema.a" in loop.optimizer.state[p] for p in loop.params)
    assert not any(name.endswith(".a") for name in loop.optimizer.state_dict()["param_groups"][0]["constraint"])
    loop.optimizer.control["a"] = gap
    loop.step(4, "ab")
    stats = loop.optimizer.stats["a"]
    if cls is ux.EpsilonSGD:  # the average of one gradient is the gradient
        a = numbers(4000 + ord("a"), 49)
        assert stats.sq_constraint.item() == pytest.approx(a @ a, rel=1e-6)
    kept = loop.optimizer.state_dict()["param_groups"][0]["constraint"]
    assert [kept[f"state.{n}"][0].item() for n in "ab"] == [1, 5]  # the steps of each


@each_path
def test_a_renamed_constraint_is_a_new_one(fused):
    loop = Loop(names="a", fused=fused, constraint_grad_ema=0.9)
    loop.step(0, "a")
    loop.optimizer.control = {"z": loop.optimizer.control["a"]}
    loop.step(1, "z")
    kept = loop.optimizer.state_dict()["param_groups"][0]["constraint"]
    assert set(kept) == {"skipped_steps", "state.z"}
    assert kept["state.z"][0].item() == 1
    assert {n for n in loop.optimizer.state[loop.params[0]] if n.startswith("constraint")} == {"constraint_ema.z"}


def test_a_held_constraint_must_still_be_there():
    loop = Loop()
    loop.hold(0, "b")
    del loop.optimizer.control["b"]
    before = flat(loop.params)
    with pytest.raises(RuntimeError, match=r"constraint 'b' is held, but optimizer\.control has no such"):
        loop.optimizer.step()
    assert (flat(loop.params) == before).all()


@each_path
def test_one_may_become_several(fused):
    loop = Loop(control=ux.EpsilonGap(0.5), fused=fused)
    put(loop.params, numbers(1, 49))
    loop.optimizer.hold_constraint(torch.tensor(1.0))
    loop.optimizer.step()
    assert loop.optimizer.stats.lam > 0
    loop.optimizer.control = {"a": ux.EpsilonGap(0.5), "b": ux.EpsilonGap(0.5)}
    loop.step(1, "ab")
    assert set(loop.optimizer.stats) == {"a", "b"}


# --- Names ---


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("x",), ValueError, "there is no constraint 'x'; the constraints are 'a', 'b', 'c'"),
        (("",), ValueError, "there is no constraint ''"),
        ((), ValueError, "say which constraint it is: the constraints are 'a', 'b', 'c'"),
        ((torch.amp.GradScaler("cpu"),), TypeError, r"not a GradScaler; pass a GradScaler as scaler=\.\.\."),
        ((1,), TypeError, "is the constraint's name, not a int"),
    ],
)
def test_a_wrong_name_raises_and_nothing_is_held(arguments, error, message):
    loop = Loop()
    put(loop.params, numbers(1, 49))
    with pytest.raises(error, match=message):
        loop.optimizer.hold_constraint(torch.tensor(1.0), *arguments)
    assert all(p.grad is not None for p in loop.params)
    loop.optimizer.step()
    assert all(s.psi == 0 for s in loop.optimizer.stats.values())


def test_one_without_a_name_has_none():
    loop = Loop(control=ux.EpsilonGap(0.5))
    put(loop.params, numbers(1, 49))
    with pytest.raises(ValueError, match="there is no constraint 'a'; control is not a dict"):
        loop.optimizer.hold_constraint(torch.tensor(1.0), "a")
    with pytest.raises(TypeError, match=r"pass a GradScaler as scaler=\.\.\."):
        loop.optimizer.hold_constraint(torch.tensor(1.0), torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("name", [None, "a"])
def test_an_empty_dict_has_no_constraints(name):
    loop = Loop(control={})
    loop.step(0, "")
    assert loop.optimizer.stats == {}
    put(loop.params, numbers(1, 49))
    with pytest.raises(ValueError, match="control is an empty dict, which has no constraints"):
        loop.optimizer.hold_constraint(torch.tensor(1.0), name)


@pytest.mark.parametrize("name", ["", None, 3, ("a",)])
def test_names_must_be_strings(name):
    with pytest.raises(ValueError, match="must be a string that is not empty"):
        Loop(control={name: ux.EpsilonGap(0.5)})


def test_a_control_that_is_none():
    loop = Loop(control={"a": ux.EpsilonGap(0.5), "b": "gap"})
    loop.hold(0, "a")
    with pytest.raises(TypeError, match="must be EpsilonGap, GradientNorm or a callable, or a dict of these"):
        loop.optimizer.step()


# --- Controls that are callables, and proxies ---


@each_path
def test_callables_get_the_values_of_their_constraint(fused):
    seen = {}

    def control_of(name, psi):
        def control(stats):
            seen[name] = stats
            return torch.tensor(psi)

        return control

    control = {"a": control_of("a", 2.0), "b": ux.EpsilonGap(0.5, alpha=1.0), "c": control_of("c", 3.0)}
    loop = Loop(ux.EpsilonSGD, control=control, fused=fused)
    loop.step(0, "ab")
    assert set(seen) == {"a"}  # c is not held
    assert seen["a"].constraint.item() == pytest.approx(1.97)
    assert seen["a"].psi.item() == 0
    loop.step(1, "abc")
    stats = loop.optimizer.stats
    assert [stats[n].psi.item() for n in "abc"] == pytest.approx([2.0, 1.98 - 0.5, 3.0], rel=1e-6)
    g = numbers(1000 + ord("c"), 49)
    assert seen["c"].sq_constraint.item() == pytest.approx(g @ g, rel=1e-6)
    assert all(abs(s.shortfall.item()) < 1e-4 for s in stats.values())
    assert loop.optimizer.skipped_steps.item() == 0


@each_path
def test_proxies_of_values_without_gradient(fused):
    """Two counts, each of a half of θ, are held down by the gradients of their surrogates."""
    theta = nn.Parameter(torch.linspace(-1.0, 2.0, 40))
    epsilon = {"even": 0.25, "odd": 0.5}
    control = {n: ux.EpsilonGap(e, rate=0.2) for n, e in epsilon.items()}
    optimizer = ux.EpsilonSGD([theta], lr=0.5, control=control, fused=fused)
    for _ in range(150):
        for n, part in zip(epsilon, (theta[::2], theta[1::2]), strict=True):
            (part * 4).sigmoid().mean().backward()
            optimizer.hold_constraint((part > 0).float().mean(), n)
        (theta - 2).square().mean().backward()
        count = (theta[::2] > 0).float().mean()
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.stats["even"].constraint == count
    for (_, e), part in zip(epsilon.items(), (theta[::2], theta[1::2]), strict=True):
        assert (part > 0).float().mean().item() == pytest.approx(e, abs=0.101)


def test_a_whole_number_is_a_value():
    loop = Loop()
    loop.hold(0, "a", value=3)
    loop.hold(0, "b", value=True)
    loop.optimizer.step()
    assert loop.optimizer.stats["a"].constraint == 3
    assert loop.optimizer.stats["b"].constraint == 1


# --- Skipped steps ---


@each_path
@each_class
@pytest.mark.parametrize("names", ["ab", "abc", "abcdefgh"])
def test_a_bad_value_of_any_constraint_skips_the_whole_step(cls, names, fused):
    loop = Loop(cls, names, fused=fused, constraint_grad_ema=0.9)
    loop.step(0, names)
    before, skipped = loop.everything(), 0
    for culprit, bad in itertools.product((names[0], names[-1]), (NAN, INF, -INF)):
        for spoil, value in ((bad, None), (None, bad)):
            for name in names:
                mine = name == culprit
                loop.hold(1, name, value=value if mine else None, spoil=spoil if mine else None)
            put(loop.params, numbers(1000, 49))
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            skipped += 1
            assert loop.optimizer.stats[culprit].skipped
            assert loop.optimizer.skipped_steps.item() == skipped
            assert_equal(before, loop.everything())
    undisturbed = Loop(cls, names, fused=fused, constraint_grad_ema=0.9)
    undisturbed.step(0, names)
    for other in (loop, undisturbed):
        other.step(2, names)
    assert_equal(loop.everything(), undisturbed.everything())


@each_class
@pytest.mark.parametrize("culprit", ["a", "b", "c", "objective", None])
@pytest.mark.parametrize("unscale_first", [False, True])
def test_an_overflow_of_any_scaled_gradient_skips_and_lowers_the_scale(cls, culprit, unscale_first):
    loop, plain = Loop(cls), Loop(cls)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # creates the scale
    before = flat(loop.params)
    for name in "abc":
        for p, part in zip(loop.params, np.split(1024 * numbers(ord(name), 49), [9]), strict=True):
            grad = torch.from_numpy(part).float()
            p.grad = grad if p.grad is None else p.grad + grad  # as backward() adds to what hold_constraint left
        if culprit == name:
            loop.params[1].grad[7] = INF
        loop.optimizer.hold_constraint(torch.tensor(1.0 + ord(name) / 100), name, scaler=scaler)
    for p, part in zip(loop.params, np.split(1024 * numbers(0, 49), [9]), strict=True):
        grad = torch.from_numpy(part).float()
        p.grad = grad if p.grad is None else p.grad + grad
    if culprit == "objective":
        loop.params[0].grad[2] = NAN
    if unscale_first:
        scaler.unscale_(loop.optimizer)
    scaler.step(loop.optimizer)
    scaler.update()
    if culprit is None:
        plain.step(0)
        np.testing.assert_allclose(flat(loop.params), flat(plain.params), rtol=1e-6, atol=1e-7)
        assert scaler.get_scale() == 1024.0
        return
    assert (flat(loop.params) == before).all()
    assert scaler.get_scale() == 512.0


def test_every_constraint_must_be_scaled():
    loop = Loop(names="ab")
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    loop.hold(0, "a", scaler=scaler)
    loop.hold(0, "b")
    put(loop.params, numbers(0, 49))
    with pytest.raises(RuntimeError, match="a constraint was held without it"):
        scaler.step(loop.optimizer)


@each_path
@each_class
def test_micro_batches_add_up_for_each_constraint(cls, fused):
    whole, parts = Loop(cls, "ab", fused=fused), Loop(cls, "ab", fused=fused)
    whole.step(0, "ab")
    for _, name in itertools.product(range(2), "ab"):
        put(parts.params, numbers(ord(name), 49) / 2)
        parts.optimizer.hold_constraint(torch.tensor((1.0 + ord(name) / 100) / 2), name)
    put(parts.params, numbers(0, 49))
    parts.optimizer.step()
    np.testing.assert_allclose(flat(parts.params), flat(whole.params), rtol=1e-6, atol=1e-7)


# --- dtypes ---


@needs_kernels
@each_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", ["ab", "abcde", "abcdefgh"])
def test_half_precision_on_kernels_and_reference(cls, dtype, names):
    loops = [Loop(cls, names, dtype=dtype, fused=fused, constraint_grad_ema=0.5) for fused in (True, False)]
    for index, loop in itertools.product(range(3), loops):
        loop.step(index, names)
    ulp = torch.finfo(dtype).eps
    np.testing.assert_allclose(flat(loops[0].params), flat(loops[1].params), rtol=4 * ulp, atol=4 * ulp)
    lams = [[s.lam.item() for s in loop.optimizer.stats.values()] for loop in loops]
    np.testing.assert_allclose(*lams, rtol=0.05, atol=0.05)


@each_path
def test_parameters_of_several_dtypes(fused):
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    params = [nn.Parameter(torch.from_numpy(numbers(i, 20)).to(dtype)) for i, dtype in enumerate(dtypes)]
    before = flat(params)
    optimizer = ux.EpsilonSGD(params, lr=0.1, control={n: ux.EpsilonGap(0.0, rate=0.5) for n in "ab"}, fused=fused)
    for salt, name in enumerate("ab"):
        put(params, numbers(40 + salt, 60))
        optimizer.hold_constraint(torch.tensor(2.0, dtype=dtypes[1 + salt]), name)
    a = [np.concatenate([p.double().numpy() for p in grads]) for grads in (h.grads for h in held_by(optimizer))]
    put(params, numbers(50, 60))
    optimizer.step()
    change = before - flat(params)
    for row in a:
        assert row @ change == pytest.approx(1.0, abs=0.02)  # rounding of θ to half precision


def held_by(optimizer):
    held = optimizer._constraints.held
    return [held.by_name[name] for name in held.names]


# --- Checkpoints ---


@each_path
@each_class
@pytest.mark.parametrize("held", ["", "b", "abc"])
@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
def test_a_copy_continues_to_the_same_bits(cls, held, how, fused):
    loop = Loop(cls, fused=fused, constraint_grad_ema=0.8)
    for index in range(3):
        loop.step(index, "abc" if index else "ac")
    for name in held:
        loop.hold(3, name)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(loop))
    elif how == "deepcopy":
        twin = copy.deepcopy(loop)
    else:
        twin, saved = Loop(cls, "cab", fused=fused, constraint_grad_ema=0.8), loop.optimizer.state_dict()
        if how == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        twin.optimizer.load_state_dict(saved)
        for mine, its in zip(twin.params, loop.params, strict=True):
            mine.data.copy_(its.data)
    for mine in (loop, twin):
        mine.step(4, "".join(n for n in "abc" if n not in held))
        mine.step(5)
    assert_equal(loop.everything(), twin.everything())
    lams = [[s.lam.item() for s in mine.optimizer.stats.values()] for mine in (loop, twin)]
    assert lams[0] == lams[1]


def test_the_keys_of_a_checkpoint():
    loop = Loop(names="ab", constraint_grad_ema=0.5)
    loop.step(0, "ab")
    loop.hold(1, "b")
    saved = loop.optimizer.state_dict()
    assert set(saved["param_groups"][0]["constraint"]) == {"skipped_steps", "state.a", "state.b", "held.b"}
    moments = {"step", "exp_avg", "exp_avg_sq"}
    assert set(saved["state"][0]) == moments | {"constraint_ema.a", "constraint_ema.b", "constraint_grad.b"}


def test_a_name_may_have_dots():
    names = ["a.b", "a.c", "a"]
    loop, twin = (Loop(names=names, constraint_grad_ema=0.5) for _ in range(2))
    loop.step(0, names[:2])
    loop.hold(1, "a.c")
    twin.optimizer.load_state_dict(loop.optimizer.state_dict())
    for mine, its in zip(twin.params, loop.params, strict=True):
        mine.data.copy_(its.data)
    for mine in (loop, twin):
        mine.step(1, ["a"])
        del mine.optimizer.control["a"]
        mine.step(2, names[:2])
    assert_equal(loop.everything(), twin.everything())
    assert loop.optimizer.stats["a.c"].lam == twin.optimizer.stats["a.c"].lam != 0


@each_path
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_a_checkpoint_of_a_version_with_one_constraint_loads(held, decay, fused):
    """Until version 0.3 a group had 0-d tensors: skipped_steps, integral, smoothed_steps, smoothed_constraint, held.

    Today's control begins anew with it, as if the constraint were a new one.
    """
    loops = [Loop(control=ux.EpsilonGap(0.5, rate=0.3), fused=fused, constraint_grad_ema=decay) for _ in range(2)]

    def step(loop, index, hold=True, finish=True):
        if hold:
            put(loop.params, numbers(1000 * index + 1, 49))
            loop.optimizer.hold_constraint(torch.tensor(1.5))
        if finish:
            put(loop.params, numbers(1000 * index, 49) if index != 1 else np.full(49, NAN))
            loop.optimizer.step()
            loop.optimizer.zero_grad()

    for index in range(4):  # the second is skipped
        step(loops[0], index)
    if held:
        step(loops[0], 4, finish=False)
    saved = copy.deepcopy(loops[0].optimizer.state_dict())
    new = saved["param_groups"][0]["constraint"]
    assert set(new) == {"skipped_steps", "state"} | ({"held"} if held else set())
    old = {
        "skipped_steps": torch.tensor(1.0, dtype=torch.float64),
        "integral": torch.tensor(0.7, dtype=torch.float64),
        "smoothed_steps": torch.tensor(3.0 if decay else 0.0, dtype=torch.float64),
        "smoothed_constraint": torch.zeros((), dtype=torch.float64),
    }
    anew = copy.deepcopy(saved)
    anew["param_groups"][0]["constraint"]["state"].zero_()
    loops[0].optimizer.load_state_dict(anew)
    saved["param_groups"][0]["constraint"] = old | ({"held": new["held"]} if held else {})
    loops[1].optimizer.load_state_dict(saved)
    for mine, its in zip(loops[1].params, loops[0].params, strict=True):
        mine.data.copy_(its.data)
    assert loops[1].optimizer.skipped_steps.item() == 1
    for loop in loops:
        step(loop, 4, hold=not held)
        step(loop, 5)
    for mine, its in zip(loops[1].everything(), loops[0].everything(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)


# --- The kernels' limit, and torch.compile ---


@needs_kernels
@each_class
def test_nine_constraints(cls):
    names = "abcdefghi"
    loops = [Loop(cls, names, fused=fused) for fused in (None, False, True)]
    for loop in loops[:2]:
        loop.step(0, names)
    assert_equal(loops[0].everything(), loops[1].everything())
    before = flat(loops[2].params)
    with pytest.raises(
        RuntimeError, match="fused=True, but the kernels have 8 constraints at most, and this step has 9"
    ):
        loops[2].step(0, names)
    assert (flat(loops[2].params) == before).all()
    eight = Loop(cls, names, fused=True)
    eight.step(0, names[:8])  # of nine, a step with eight has kernels
    assert eight.optimizer.stats["i"].lam == 0


@pytest.mark.parametrize("names", ["abc", "abcdefghi"])
@each_class
def test_compiled_without_recompilation_when_numbers_change(cls, names):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled, eager = Loop(cls, names), Loop(cls, names)
    for loop in (compiled, eager):
        loop.step(0, names)  # creates the state
    run = torch.compile(compiled.optimizer.step, fullgraph=True, backend=counter)
    for index in range(1, 6):
        for loop in (compiled, eager):
            loop.optimizer.param_groups[0]["lr"] = 0.02 / index
            for n in names:
                gap = loop.optimizer.control[n]
                gap.epsilon, gap.rate, gap.equality = 0.5 / index, 0.1 + 0.01 * index, index == 3
                loop.hold(index, n)
            put(loop.params, numbers(1000 * index, 49))
            run() if loop is compiled else loop.optimizer.step()
            loop.optimizer.zero_grad()
    assert counter.frame_count == 1
    assert_equal(compiled.everything(), eager.everything())
    for mine, its in zip(compiled.optimizer.stats.values(), eager.optimizer.stats.values(), strict=True):
        assert mine.psi == its.psi


def test_a_constraint_added_after_compilation_runs_uncompiled_once():
    torch._dynamo.reset()
    compiled, eager = Loop(names="ab"), Loop(names="ab")
    run = torch.compile(compiled.optimizer.step, backend="eager")
    for index, names in enumerate(("ab", "ab", "abc", "abc", "c")):
        for loop in (compiled, eager):
            loop.optimizer.control = {n: ux.EpsilonGap(0.5) for n in ("ab" if index < 2 else "abc")}
            for n in names:
                loop.hold(index, n)
            put(loop.params, numbers(1000 * index, 49))
            run() if loop is compiled else loop.optimizer.step()
            loop.optimizer.zero_grad()
    assert_equal(compiled.everything(), eager.everything())
