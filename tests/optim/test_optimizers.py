"""The optimizers equal torch's without a constraint, and satisfy the constraint with one."""

import copy
import weakref

import pytest
import torch
from steps import PATHS, needs_kernels
from torch import nn

import unlearn_ext as ux
from unlearn_ext.ops import extension

GAP = ux.EpsilonGap(epsilon=0.3)
SGD_OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"weight_decay": 0.1, "maximize": True},
]
ADAMW_OPTIONS = [{}, {"weight_decay": 0.3}, {"betas": (0.5, 0.9), "eps": 1e-4, "maximize": True}]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 5))


def follow(mine, theirs, make_mine, make_theirs, steps=200):
    ours, torchs = make_mine(mine.parameters()), make_theirs(theirs.parameters())
    data = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(16, 7, generator=data), torch.randn(16, 5, generator=data)
        for model, optimizer in ((mine, ours), (theirs, torchs)):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(ux.EpsilonSGD, torch.optim.SGD, o) for o in SGD_OPTIONS]
    + [(ux.EpsilonAdamW, torch.optim.AdamW, o) for o in ADAMW_OPTIONS],
)
def test_without_a_constraint_it_equals_torchs_optimizer_over_200_steps(fused, ours, theirs, options):
    a, b = network(), network()
    options = {"lr": 1e-2, **options}
    follow(a, b, lambda p: ours(p, control=GAP, fused=fused, **options), lambda p: theirs(p, **options))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)


def two_losses(model, data):
    x = torch.randn(32, 7, generator=data)
    forget = model(x).square().mean()
    keep = (model(x + 0.1) - x[:, :5].sin()).square().mean()
    return forget, keep


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(ux.EpsilonSGD, o) for o in SGD_OPTIONS[:4]] + [(ux.EpsilonAdamW, {}), (ux.EpsilonAdamW, {"weight_decay": 0.3})],
)
def test_every_step_decreases_f1_by_mu_psi_to_first_order(fused, optimizer, options):
    model, data, lr = network(), torch.Generator().manual_seed(2), 1e-2
    options = {**options, "constraint_grad_ema": 0.0}  # an average would keep the promise for the average
    opt = optimizer(model.parameters(), lr=lr, control=ux.EpsilonGap(epsilon=0.05, rate=0.05), fused=fused, **options)
    active = 0
    for _ in range(100):
        before = [p.detach().double().clone() for p in model.parameters()]
        forget, keep = two_losses(model, data)
        forget.backward()
        g1 = [p.grad.double() for p in model.parameters()]
        opt.hold_constraint(forget)
        keep.backward()
        opt.step()
        opt.zero_grad()
        change = [p.detach().double() - q for p, q in zip(model.parameters(), before, strict=True)]
        first_order = sum((g * d).sum() for g, d in zip(g1, change, strict=True)).item()
        rounding = 1e-6 * sum(g.abs().sum() for g in g1).item() * max(p.abs().max() for p in before).item()
        assert first_order <= -lr * opt.stats.psi.item() + rounding
        active += opt.stats.lam.item() > 0
    assert active > 10  # the constraint was active


def test_projecting_before_adam_violates_the_constraint():
    """Adam rescales a gradient that was projected before the step; solving the QP in Adam's metric avoids this."""
    model, data, lr = network(), torch.Generator().manual_seed(2), 1e-2
    adam = torch.optim.AdamW(model.parameters(), lr=lr)
    violated = 0
    for _ in range(100):
        before = [p.detach().clone() for p in model.parameters()]
        forget, keep = two_losses(model, data)
        forget.backward()
        g1 = [p.grad for p in model.parameters()]
        adam.zero_grad()
        keep.backward()
        psi = 0.05 / lr * (forget.detach() - 0.05)
        ux.ops.halfspace_project_([p.grad for p in model.parameters()], g1, psi)
        adam.step()
        adam.zero_grad()
        change = [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]
        first_order = sum((g * d).sum() for g, d in zip(g1, change, strict=True)).item()
        violated += first_order > -lr * psi.item() + 1e-6
    assert violated > 10


@pytest.mark.parametrize("optimizer", [ux.EpsilonSGD, ux.EpsilonAdamW])
@pytest.mark.parametrize("lr", [3e-3, 3e-2])
def test_epsilon_is_met_whatever_the_learning_rate(optimizer, lr):
    torch.manual_seed(0)
    theta, kept = nn.Parameter(torch.ones(20)), torch.linspace(0.5, 1.5, 20)
    opt = optimizer([theta], lr=lr, weight_decay=0.0, control=ux.EpsilonGap(epsilon=0.3))
    for _ in range(400):
        forget = theta.square().mean()
        forget.backward()
        opt.hold_constraint(forget)
        (theta - kept).square().mean().backward()
        opt.step()
        opt.zero_grad()
    assert theta.square().mean().item() == pytest.approx(0.3, rel=0.01)


def test_held_gradient_is_taken_without_a_copy_and_accumulates():
    p = nn.Parameter(torch.ones(4))
    opt = ux.EpsilonSGD([p], lr=0.1, control=ux.GradientNorm())
    (p.sum() * 2).backward()
    address = p.grad.data_ptr()
    opt.hold_constraint(torch.tensor(1.0))
    assert p.grad is None
    assert opt._constraints.held.by_name[""].grads[0].data_ptr() == address
    (p.sum() * 3).backward()
    opt.hold_constraint(torch.tensor(0.5))
    opt.step()
    stats = opt.stats
    assert stats.constraint.item() == 1.5
    assert stats.sq_constraint.item() == pytest.approx(4 * 25)
    assert p.tolist() == pytest.approx([1 - 0.1 * 5] * 4)  # δ = 2, α = 1: the gradient step on f1


def test_what_is_held_stays_where_a_later_micro_batch_has_no_gradient():
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = ux.EpsilonSGD([a, b], lr=0.1, control=ux.GradientNorm())
    for loss in (a.sum() * 2, b.sum() * 3):
        loss.backward()
        opt.hold_constraint(loss)
    opt.hold_constraint(torch.tensor(1.0))  # a value without gradients is only added to f1
    opt.step()
    assert opt.stats.sq_constraint.item() == pytest.approx(2 * 4 + 2 * 9)
    assert opt.stats.constraint.item() == 4 + 6 + 1


@pytest.mark.parametrize("fused", PATHS)
def test_a_bad_value_skips_the_step_and_is_counted(fused):
    p = nn.Parameter(torch.ones(4))
    opt = ux.EpsilonAdamW([p], control=GAP, fused=fused)
    for bad_value, bad_grad in ((float("nan"), 1.0), (1.0, float("inf"))):
        (p.sum() * bad_grad).backward()
        opt.hold_constraint(torch.tensor(bad_value))
        p.sum().backward()
        opt.step()
        opt.zero_grad()
    assert opt.skipped_steps.item() == 2
    assert opt.stats.skipped.item()
    assert torch.equal(p, torch.ones(4))
    assert opt.state[p]["step"].item() == 0
    p.sum().backward()
    opt.step()
    assert not opt.stats.skipped.item()
    assert opt.state[p]["step"].item() == 1


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("control", [ux.GradientNorm(), lambda stats: stats.sq_constraint], ids=["norm", "callable"])
def test_an_f1_that_is_not_finite_skips_the_step_though_psi_does_not_need_it(control, fused):
    p = nn.Parameter(torch.ones(4))
    opt = ux.EpsilonSGD([p], control=control, fused=fused)
    p.sum().backward()
    opt.hold_constraint(torch.tensor(float("nan")))
    opt.step()
    assert opt.skipped_steps.item() == 1
    assert torch.equal(p, torch.ones(4))


@pytest.mark.parametrize("fused", PATHS)
def test_the_count_of_skipped_steps_continues_with_a_new_group(fused):
    p, q = (nn.Parameter(torch.ones(4)) for _ in range(2))
    opt = ux.EpsilonSGD([p], control=GAP, fused=fused)
    p.grad = torch.full((4,), float("nan"))
    opt.step()
    opt.add_param_group({"params": [q]})
    opt.step()
    assert opt.skipped_steps.item() == 2


@pytest.mark.parametrize("fused", PATHS)
def test_numbers_reach_the_step_in_double_precision(fused):
    p = nn.Parameter(torch.ones(4))
    opt = ux.EpsilonSGD([p], lr=0.1, control=ux.EpsilonGap(0.0, alpha=0.1), fused=fused)
    p.sum().backward()
    opt.hold_constraint(torch.tensor(1.0))
    opt.step()
    assert opt.stats.psi.item() == pytest.approx(0.1, rel=1e-14)


@pytest.mark.parametrize("fused", PATHS)
def test_lambda_is_global_over_groups_and_weighted_by_their_rates(fused):
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    opt = ux.EpsilonSGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.01}], control=GAP, fused=fused)
    f1 = (a.sum() + b.sum()) * 0.2
    f1.backward()
    opt.hold_constraint(f1)
    opt.step()
    expected = 0.1 * (1.0 - 0.3) / (0.2**2 * (0.1 * 3 + 0.01 * 2))
    assert opt.stats.lam.item() == pytest.approx(expected, rel=1e-6)
    decrease = 0.2 * ((1 - a).sum() + (1 - b).sum())
    assert decrease.item() == pytest.approx(0.1 * 0.7, rel=1e-5)


@pytest.mark.parametrize("fused", PATHS)
def test_tensor_learning_rate_and_half_parameters(fused):
    p = nn.Parameter(torch.ones(9, dtype=torch.bfloat16))
    opt = ux.EpsilonSGD([p], lr=torch.tensor(0.5), control=GAP, fused=fused)
    p.float().sum().backward()
    opt.step()
    assert p.dtype == torch.bfloat16
    assert p.tolist() == [0.5] * 9


@pytest.mark.parametrize("fused", PATHS)
def test_constraint_weight_equals_a_rescaled_f1(fused):
    """Halving f1 and multiplying w by 4 gives the same steps, with twice the λ."""
    units = {1.0: 0.25, 0.5: 1.0}  # the factor of f1, and w
    models, optimizers = zip(*[_under_units(unit, weight, fused) for unit, weight in units.items()], strict=True)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    plain, halved = (optimizer.stats.lam.item() for optimizer in optimizers)
    assert plain > 0
    assert plain == pytest.approx(halved / 2, rel=1e-4)
    other, _ = _under_units(1.0, 1.0, fused)
    assert not torch.allclose(other[0].weight, models[0][0].weight, rtol=1e-3)


def _under_units(unit, weight, fused):
    model, data = network(), torch.Generator().manual_seed(1)
    control = ux.EpsilonGap(epsilon=0.0)
    optimizer = ux.EpsilonAdamW(model.parameters(), lr=1e-2, control=control, constraint_weight=weight, fused=fused)
    for _ in range(20):
        x, y = torch.randn(16, 7, generator=data), torch.randn(16, 5, generator=data)
        f1 = unit * model(x).square().mean()
        f1.backward()
        optimizer.hold_constraint(f1)
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_nesterov_refuses_dampening():
    with pytest.raises(ValueError, match="nesterov needs a momentum and no dampening"):
        ux.EpsilonSGD(network().parameters(), momentum=0.9, dampening=0.1, nesterov=True, control=GAP)


@pytest.mark.parametrize("option", ["lr", "eps", "weight_decay", "constraint_weight"])
def test_a_negative_option_is_refused(option):
    with pytest.raises(ValueError, match=rf"{option}=-1\.0 must not be negative"):
        ux.EpsilonAdamW(network().parameters(), control=GAP, **{option: -1.0})


@pytest.mark.parametrize("fused", PATHS)
def test_clipping_and_lambda_max(fused):
    p = nn.Parameter(torch.zeros(4))
    opt = ux.EpsilonSGD([p], lr=1.0, control=ux.EpsilonGap(0.1), max_norm=0.5, lambda_max=2.0, fused=fused)
    (p.sum() * 1e-3).backward()
    opt.hold_constraint(torch.tensor(10.0))
    (p.sum() * 3).backward()
    opt.step()
    assert opt.stats.lam.item() == 2.0
    assert opt.stats.scale.item() < 1
    assert p.norm().item() == pytest.approx(0.5, rel=1e-5)


def test_state_of_torchs_adamw_can_be_copied_and_optimizer_survives_deepcopy():
    model = network()
    opt = ux.EpsilonAdamW(model.parameters(), control=GAP, constraint_grad_ema=0.0)
    follow(model, network(), lambda p: opt, lambda p: torch.optim.AdamW(p), steps=3)
    assert set(opt.state[next(model.parameters())]) == {"step", "exp_avg", "exp_avg_sq"}
    assert copy.deepcopy(opt.state_dict())["param_groups"][0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(ux.EpsilonAdamW, {}), (ux.EpsilonAdamW, {"constraint_grad_ema": 0.5}), (ux.EpsilonSGD, {"momentum": 0.9})],
)
def test_state_belongs_to_its_parameter_in_any_order(optimizer, options):
    models = network(), network()
    plain, mixed = (optimizer(model.parameters(), lr=1e-2, control=GAP, **options) for model in models)
    for index in range(6):
        for model, opt in zip(models, (plain, mixed), strict=True):
            forget, keep = two_losses(model, torch.Generator().manual_seed(index))
            forget.backward()
            opt.hold_constraint(forget)
            keep.backward()
            opt.step()
            opt.zero_grad()
        entries = list(mixed.state.items())
        mixed.state.clear()
        if index == 3:
            plain.state.clear()  # an optimizer whose state is cleared starts again
        else:
            mixed.state.update(reversed(entries))
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(p, q)


def test_a_callable_control_sees_the_stats():
    p = nn.Parameter(torch.ones(4))
    seen = []

    def control(stats):
        seen.append(stats)
        return stats.constraint - 0.25

    opt = ux.EpsilonSGD([p], lr=0.1, control=control)
    p.sum().backward()
    opt.hold_constraint(p.sum())
    (-2 * p.sum()).backward()
    opt.step()
    assert seen[0].sq_constraint.item() == 4
    assert seen[0].psi.item() == 0
    assert seen[0].lam.item() == 2  # λ for ψ = 0
    assert opt.stats.psi.item() == pytest.approx(3.75)
    assert opt.skipped_steps.item() == 0


def test_a_callable_control_is_not_called_when_nothing_is_held():
    p = nn.Parameter(torch.ones(4))
    opt = ux.EpsilonSGD([p], lr=0.1, control=lambda stats: pytest.fail("asked"))
    p.sum().backward()
    opt.step()
    assert p.tolist() == pytest.approx([0.9] * 4)


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("make", [lambda p, **o: ux.EpsilonSGD(p, momentum=0.9, **o), ux.EpsilonAdamW])
def test_states_do_not_depend_on_the_default_dtype(make, fused):
    p = nn.Parameter(torch.ones(4))
    opt = make([p], control=GAP, fused=fused)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        p.sum().backward()
        opt.step()
    finally:
        torch.set_default_dtype(default)
    assert {state.dtype for state in opt.state[p].values()} == {torch.float32}


@pytest.mark.parametrize("fused", PATHS)
def test_two_parameters_may_have_one_gradient(fused):
    """Tensors that are only read may be shared."""
    params, both = [nn.Parameter(torch.ones(4)) for _ in range(2)], torch.ones(4)
    opt = ux.EpsilonSGD(params, lr=0.1, control=ux.GradientNorm(), fused=fused)
    for p in params:
        p.grad = both
    opt.hold_constraint(torch.tensor(1.0))
    for p in params:
        p.grad = both
    opt.step()
    assert all(p.tolist() == pytest.approx([0.9] * 4) for p in params)


@pytest.mark.parametrize("cls", [ux.EpsilonSGD, ux.EpsilonAdamW])
@pytest.mark.parametrize("fused", [None, False])
def test_no_gradient_outlives_its_step(cls, fused):
    """Keeping both gradients until the next step would cost the memory of two models."""
    p = nn.Parameter(torch.ones(4))
    opt = cls([p], control=GAP, fused=fused)
    p.square().sum().backward()
    held = weakref.ref(p.grad)
    opt.hold_constraint(torch.tensor(1.0))
    p.sum().backward()
    objective = weakref.ref(p.grad)
    opt.step()
    opt.zero_grad()
    assert held() is None
    assert objective() is None


class TestBadInput:
    def test_a_gradient_whose_shape_changed(self):
        p = nn.Parameter(torch.ones(4))
        opt = ux.EpsilonSGD([p], control=GAP)
        p.sum().backward()
        p.data = torch.ones(5)
        with pytest.raises(ValueError, match=r"tensor 0 has shape \(5,\) but a gradient.* of shape \(4,\)"):
            opt.step()

    def test_holding_before_backward(self):
        opt = ux.EpsilonSGD([nn.Parameter(torch.ones(4))], control=GAP)
        with pytest.raises(RuntimeError, match=r"call backward\(\) of the constraint first"):
            opt.hold_constraint(torch.tensor(1.0))

    def test_kernels_that_are_not_there(self, monkeypatch):
        monkeypatch.setattr(extension, "kernels", None)
        monkeypatch.setattr(extension, "missing", "they were not built")
        p = nn.Parameter(torch.ones(4))
        opt = ux.EpsilonSGD([p], control=GAP, fused=True)
        p.sum().backward()
        with pytest.raises(RuntimeError, match=r"fused=True, but they were not built\."):
            opt.step()

    def test_a_device_without_kernels(self, monkeypatch):
        monkeypatch.setattr(extension, "kernels", object())
        assert extension.why_not(torch.device("mps")) == "there are no kernels for mps tensors"

    def test_a_value_that_is_no_tensor(self):
        opt = ux.EpsilonSGD([nn.Parameter(torch.ones(4))], control=GAP)
        with pytest.raises(ValueError, match="the value must be a real tensor with one element"):
            opt.hold_constraint(0.5)

    def test_a_value_that_is_no_scalar(self):
        opt = ux.EpsilonSGD([nn.Parameter(torch.ones(4))], control=GAP)
        with pytest.raises(ValueError, match="one element"):
            opt.hold_constraint(torch.ones(3))

    @pytest.mark.parametrize("options", [{"lr": -1}, {"momentum": -0.1}, {"nesterov": True}, {"max_norm": 0}])
    def test_arguments_out_of_range(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            ux.EpsilonSGD([nn.Parameter(torch.ones(4))], control=GAP, **options)

    @needs_kernels
    def test_fused_true_says_why_it_cannot(self):
        p = nn.Parameter(torch.ones(4, dtype=torch.float64))
        opt = ux.EpsilonSGD([p], control=GAP, fused=True)
        p.sum().backward()
        with pytest.raises(RuntimeError, match=r"fused=True, but there is no kernel for a float64 gradient"):
            opt.step()

    def test_stats_before_the_first_step(self):
        opt = ux.EpsilonSGD([nn.Parameter(torch.ones(4))], control=GAP)
        with pytest.raises(RuntimeError, match="no step"):
            _ = opt.stats
