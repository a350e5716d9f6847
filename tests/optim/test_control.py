"""The control functions: ψ of a first step, and where runs on small problems go, with and without noise."""

import io
import math

import pytest
import torch
from steps import PATHS
from torch import nn

import unlearn_ext as ux
from unlearn_ext.ops.layout import KEPT, Report


def psi_of(control, f1, g1=2.0, lr=0.1, fused=False, steps=1):
    p = nn.Parameter(torch.zeros(3))
    opt = ux.EpsilonSGD([p], lr=lr, control=control, fused=fused)
    for _ in range(steps):
        p.grad = torch.full((3,), g1)
        opt.hold_constraint(torch.tensor(f1))
        opt.step()
    return opt.stats.psi.item()


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize(
    ("control", "f1", "psi"),
    [
        (ux.EpsilonGap(0.3), 1.3, 0.1 / 0.1 * 1.0),
        (ux.EpsilonGap(0.3, rate=0.5), 0.1, 0.5 / 0.1 * -0.2),
        (ux.EpsilonGap(0.3, alpha=1), 1.3, 1.0),  # eq. 6
        (ux.EpsilonGap(0.5, alpha=2, delta=2), 0.2, -2 * 0.09),  # the sign is kept
        (ux.EpsilonGap(0.5, alpha=2, delta=0.5), 0.75, 2 * 0.5),
        (ux.EpsilonGap(0.0, alpha=100, cap=0.5), 9.0, 0.5 * 12),
        (ux.GradientNorm(0.3), 9.0, 0.3 * 12),
        (ux.GradientNorm(0.3, delta=1), 9.0, 0.3 * math.sqrt(12)),
        (ux.GradientNorm(3, cap=0.5), 9.0, 0.5 * 12),
    ],
)
def test_psi(control, f1, psi, fused):
    assert psi_of(control, f1, fused=fused) == pytest.approx(psi, rel=1e-6)


@pytest.mark.parametrize("fused", PATHS)
def test_epsilon_may_change_between_steps(fused):
    p = nn.Parameter(torch.zeros(3))
    opt = ux.EpsilonSGD([p], lr=0.1, control=ux.EpsilonGap(0.3, alpha=1), fused=fused)
    for epsilon in (0.3, 0.1):
        opt.control.epsilon = epsilon
        p.grad = torch.ones(3)
        opt.hold_constraint(torch.tensor(1.0))
        opt.step()
        assert opt.stats.psi.item() == pytest.approx(1 - epsilon)


@pytest.mark.parametrize(
    ("control", "name"),
    [
        (ux.EpsilonGap(math.nan), "epsilon"),
        (ux.EpsilonGap(0.1, rate=2), "rate"),
        (ux.EpsilonGap(0.1, delta=0), "delta"),
        (ux.EpsilonGap(0.1, alpha=-1), "alpha"),
        (ux.EpsilonGap(0.1, cap=0), "cap"),
        (ux.EpsilonGap(0.1, integral=0.1), "integral"),  # a number once, with another meaning
        (ux.GradientNorm(alpha=0), "alpha"),
    ],
)
def test_values_without_meaning_are_refused(control, name):
    with pytest.raises(ValueError, match=name):
        psi_of(control, 1.0)


# --- Runs: c = mean θ² (+ what cannot be reduced) against an objective that pulls θ to a point ---

OPTIMIZERS = {
    "sgd": lambda p, control, **o: ux.EpsilonSGD(p, lr=o.pop("lr", 0.05), control=control, **o),
    "adamw": lambda p, control, **o: ux.EpsilonAdamW(p, lr=o.pop("lr", 0.01), weight_decay=0.0, control=control, **o),
    "wrapper": lambda p, control, **o: ux.EpsilonWrapper(
        torch.optim.AdamW(p, lr=o.pop("lr", 0.01), weight_decay=0.0), control, **o
    ),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_path = pytest.mark.parametrize("fused", PATHS)


class Run:
    """A run from θ = ``start``; its steps return c over the full data.

    Args:
        name: of the optimizer.
        control: the control of c.
        start: every element of θ.
        least: infimum of c.
        noise: standard deviation of the noise in every element of ∇c and ∇f2, and in c, in units of that of θ = 1.
        seed: of the noise.
        unit: factor of c.
    """

    def __init__(self, name, control, start=1.0, least=0.0, noise=0.0, seed=0, unit=1.0, **options) -> None:
        self.theta, self.target = nn.Parameter(torch.full((20,), start)), torch.linspace(0.5, 1.5, 20)
        self.optimizer = OPTIMIZERS[name]([self.theta], control, **options)
        self.least, self.noise, self.unit = least, noise, unit
        self.random = torch.Generator().manual_seed(seed)

    def drawn(self, *shape):
        return self.noise * torch.randn(shape, generator=self.random)

    def value(self):
        return (self.theta.detach().double().square().mean().item() + self.least) * self.unit

    def step(self):
        theta, noise = self.theta.detach(), self.drawn(20)
        measured = self.value() + self.unit * ((2 * noise * theta).mean() + 0.6 * self.drawn(1)[0]).item()
        self.theta.grad = self.unit * 2 / 20 * (theta + noise)
        self.optimizer.hold_constraint(torch.tensor(measured, dtype=torch.float64))
        self.theta.grad = 2 / 20 * (theta - self.target + self.drawn(20))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.value()

    def steps(self, count):
        return [self.step() for _ in range(count)]

    def kept(self, column):
        return self.optimizer.state_dict()["param_groups"][0]["constraint"]["state"][column - KEPT].item()


@each_path
def test_where_c_follows_the_demand_psi_is_proportional_to_the_gap(fused):
    """A linear c does exactly what is demanded: there is nothing to integrate."""
    a, theta = torch.linspace(0.5, 1.0, 8), nn.Parameter(torch.ones(8))
    optimizer = ux.EpsilonSGD([theta], lr=0.1, control=ux.EpsilonGap(0.5), fused=fused)
    first = c = (theta.detach() @ a).item()
    for step in range(100):
        theta.grad = a.clone()
        optimizer.hold_constraint(torch.tensor(c, dtype=torch.float64))
        theta.grad = -a
        optimizer.step()
        assert optimizer.stats.psi.item() == pytest.approx(0.1 / 0.1 * (c - 0.5), abs=1e-5)
        c = (theta.detach().double() @ a.double()).item()
        assert c - 0.5 == pytest.approx((first - 0.5) * 0.9 ** (step + 1), abs=1e-5)
    kept = optimizer.state_dict()["param_groups"][0]["constraint"]["state"]
    assert abs(kept[Report.INTEGRAL - KEPT]) < 1e-6


@each_optimizer
@pytest.mark.parametrize(
    ("rate", "cap"), [(0.02, None), (0.1, None), (0.02, math.inf), (0.1, math.inf), (0.3, math.inf)]
)
def test_without_noise_c_closes_rate_of_its_gap_in_each_step(name, rate, cap):
    """A larger rate can be limited by the default cap, where P grows during the run."""
    run = Run(name, ux.EpsilonGap(0.3, rate=rate, cap=cap))
    values = run.steps(int(8 / rate))
    for step, value in enumerate(values):
        assert value - 0.3 == pytest.approx(0.7 * (1 - rate) ** (step + 1), abs=0.1 * 0.7)
    assert min(values) > 0.3 - 0.02 * 0.7  # overshoot
    assert values[-1] == pytest.approx(0.3, rel=0.01)


def noisy_quadratic(name, seed, steps, batch=4, examples=64, size=20, epsilon=0.1):
    """Hold ½‖θ − u‖² at ε against ½‖θ‖²; return its mean over the last tenth of the steps, without noise.

    Every example has noise in c of the size of the first gap, 0.4, and in both gradients of the size of the first ∇c.
    """
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(examples, 1 + 2 * size, generator=random)
    noise = (noise - noise.mean(0)) * torch.tensor([0.4] + [size**-0.5] * (2 * size))
    u, theta = torch.full((size,), size**-0.5), nn.Parameter(torch.zeros(size))
    lr = {"sgd": 0.05, "adamw": 3e-3, "wrapper": 3e-3}[name]
    optimizer, values = OPTIMIZERS[name]([theta], ux.EpsilonGap(epsilon), lr=lr), []
    for step in range(steps):
        if step % (examples // batch) == 0:
            batches = torch.randperm(examples, generator=random).view(-1, batch)
        of_c, slope, pull = noise[batches[step % len(batches)]].mean(0).split([1, size, size])
        away = theta.detach() - u
        theta.grad = away + slope
        optimizer.hold_constraint(away @ away / 2 + slope @ away + of_c)
        theta.grad = theta.detach() + pull
        optimizer.step()
        optimizer.zero_grad()
        values.append((theta.detach() - u).square().sum().item() / 2)
    return sum(values[-(steps // 10) :]) / (steps // 10)


@each_optimizer
def test_under_noise_the_full_data_settle_at_epsilon(name):
    """On average over three seeds; a single one may be 6 % off."""
    means = [noisy_quadratic(name, seed, steps=3000) for seed in (1, 2, 3)]
    assert sum(means) / 3 == pytest.approx(0.1, rel=0.05)
    assert means == pytest.approx([0.1] * 3, rel=0.08)


@each_optimizer
@each_path
@pytest.mark.parametrize("epsilon", [0.2, 0.9])
def test_an_epsilon_that_cannot_be_reached_costs_only_time(name, fused, epsilon):
    """c ≥ 1: it never exceeds its start, ends within 5 % of its infimum, and λ stays finite."""
    run = Run(name, ux.EpsilonGap(epsilon), least=1.0, fused=fused)
    for _ in range(600):
        assert run.step() <= 2.0 * (1 + 1e-6)
        assert run.optimizer.stats.lam.isfinite()
    assert run.value() == pytest.approx(1.0, rel=0.05)
    assert run.optimizer.skipped_steps.item() == 0


@each_optimizer
def test_epsilon_may_be_lowered_and_raised_in_a_run(name):
    control = ux.EpsilonGap(0.6)
    run = Run(name, control)
    for epsilon in (0.6, 0.2, 0.8, 0.3):
        control.epsilon, before = epsilon, run.value()
        values = run.steps(400)
        assert values[-1] == pytest.approx(epsilon, rel=0.01)
        change = epsilon - before
        assert max((value - epsilon) / change for value in values) < 0.03  # overshoot


@each_optimizer
@pytest.mark.parametrize("inactive", [10, 1000])
def test_a_constraint_that_was_inactive_for_long_does_not_wind_up(name, inactive):
    run = Run(name, ux.EpsilonGap(0.3), start=0.2)
    target, run.target = run.target, torch.full((20,), 0.2)
    assert max(run.steps(inactive)) < 0.1
    assert run.optimizer.stats.lam.item() == 0
    run.target = target
    values = run.steps(800)
    assert max(values) < 0.3 * 1.08
    assert values[-1] == pytest.approx(0.3, rel=0.01)


@each_optimizer
@pytest.mark.parametrize("start", [0.1, 1.2])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_an_equality_is_reached_from_both_sides(name, start, noise):
    """The objective pulls away: to zero from below, to larger values from above."""
    run = Run(name, ux.EpsilonGap(0.4, equality=True), start=start, noise=noise)
    if start < 0.4:
        run.target = torch.zeros(20)
    values = run.steps(2000 if noise else 300)
    gap = start**2 - 0.4
    if noise:
        assert sum(values[-400:]) / 400 == pytest.approx(0.4, rel=0.05)
    else:
        assert values[-1] == pytest.approx(0.4, rel=0.01)
        assert min((value - 0.4) / gap for value in values) > -0.02  # overshoot


@each_optimizer
@pytest.mark.parametrize(("cap", "units"), [(math.inf, (1e-6, 1.0, 1e6)), (None, (1e-6, 1e-3)), (None, (1e3, 1e6))])
def test_the_unit_of_c_does_not_matter(name, cap, units):
    """With a metric that has no ∇c. The default cap is the larger of the first demand and a plain gradient step on c.

    The first demand is the larger one in the second case, the gradient step in the third.
    """
    options = {} if name == "sgd" else {"constraint_weight": 0.0}
    runs = [Run(name, ux.EpsilonGap(0.3 * unit, cap=cap), unit=unit, **options) for unit in units]
    for _ in range(100):
        for run in runs:
            run.step()
            torch.testing.assert_close(run.theta, runs[0].theta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0])
def test_the_learning_rate_does_not_matter_where_there_is_no_objective(lr):
    run, other = (Run("sgd", ux.EpsilonGap(0.3), lr=rate) for rate in (0.05, lr))
    for _ in range(100):
        run.target, other.target = run.theta.detach().clone(), other.theta.detach().clone()
        assert other.step() == pytest.approx(run.step(), rel=1e-5)


@each_optimizer
@each_path
def test_what_the_control_remembers_survives_a_checkpoint(name, fused):
    """The steps after loading are the same to the bit, in the middle of a noisy run."""
    straight = Run(name, ux.EpsilonGap(0.3), noise=1.0, fused=fused)
    straight.steps(40)
    file = io.BytesIO()
    torch.save(straight.optimizer.state_dict(), file)
    file.seek(0)
    resumed = Run(name, ux.EpsilonGap(0.3), noise=1.0, fused=fused)
    resumed.theta.data.copy_(straight.theta.data)
    resumed.optimizer.load_state_dict(torch.load(file, weights_only=True))
    resumed.random = straight.random.clone_state()
    for _ in range(20):
        assert straight.step() == resumed.step()
        assert torch.equal(straight.optimizer.stats.psi, resumed.optimizer.stats.psi)
        assert torch.equal(straight.theta, resumed.theta)
    assert straight.kept(Report.COUNT) == 60
