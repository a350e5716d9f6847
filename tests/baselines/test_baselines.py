"""Every baseline follows its definition and uses both sets of images."""

from __future__ import annotations

import copy
import itertools
import math
import types
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_ext.baselines import METHODS, augmented_lagrangian, dual_ascent, nu_pi, pcd, train
from unlearn_ext.baselines.mgda import MGDA
from unlearn_ext.baselines.pcgrad import PCGrad
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.batches import pairs as minibatch_pairs
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.training_loop import WARMUP

TASK = CenterCrop(0.5)
QUICK = Settings(steps=3, batch_size=16)
OF_PICTURES = ("max-loss", "noisy-label", "retain-label")
NEEDS_PICTURES = (*OF_PICTURES, "gradient-difference")
EPSILON = ("dual-ascent", "nu-pi", "augmented-lagrangian")


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def moved(model):
    """Return a copy with a changed encoder, as after some steps, because f2 and its gradient are 0 at the start."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in copied.encoder_parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return copied


@pytest.fixture
def objectives(model, images):
    return Objectives.freeze(model, *images, TASK, settings=QUICK)


@pytest.fixture
def batches(objectives):
    index = torch.arange(16)
    return objectives.forget.batch(index), objectives.retain.batch(index)


def bound(name, model, objectives, value=0.2):
    return METHODS[name](model, objectives, value)


def cold(name, model, objectives, value=0.2, **options):
    """Train with one value of the knob and return the model."""
    (trained,) = train(METHODS[name], model, objectives, values=[value], **options)
    return trained


# ---- both sets


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_other_images_make_another_model(model, images, objectives, name, side):
    other = replace(getattr(objectives, side), images=images[side == "retain"].flip(-1) * 0.5)
    start = moved(model)
    a, b = (
        flat(cold(name, start, given).encoder_parameters())
        for given in (objectives, replace(objectives, **{side: other}))
    )
    assert not torch.equal(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_only_a_copy_of_the_encoder_is_trained_and_the_same_every_time(model, objectives, name):
    start = moved(model)
    before = flat(start.module.parameters())
    first, second = (cold(name, start, objectives) for _ in range(2))
    assert torch.equal(flat(start.module.parameters()), before)
    assert torch.equal(flat(first.module.parameters()), flat(second.module.parameters()))
    assert not torch.equal(flat(first.encoder_parameters()), flat(start.encoder_parameters()))
    for part, was in zip(first.module.decoder.parameters(), start.module.decoder.parameters(), strict=True):
        assert torch.equal(part, was)


# ---- definitions, compared with a direct computation


def direct(name, model, objectives, images):
    """Return (forget loss, retain loss) over the first 16 images of each side, computed from the formulas."""
    module, (x_f, x_r), s2 = model.module, (side[:16] for side in images), objectives.variance
    z_f, z_r = (module.encode(TASK(x)).latents for x in (x_f, x_r))
    made_f, made_r = (module.decode(z).sample for z in (z_f, z_r))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        frozen_f, frozen_r = (objectives.frozen(TASK(x)) for x in (images[0], images[1][:16]))
        n = objectives.frozen(torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(0))).mean(0)

    def mean(difference):
        return difference.square().mean()

    f1, f2, training = mean(z_f - n) / s2, mean(z_r - frozen_r) / s2, mean(made_r - x_r)
    match name:
        case "max-loss":
            return -mean(made_f - x_f), training
        case "gradient-difference":
            return -mean(made_f - x_f), f2
        case "noisy-label":
            return mean(made_f - torch.randn(x_f.shape, generator=generator)), training
        case "retain-label":
            return mean(made_f - x_r), training
        case "random-encoder":
            noise = torch.randn(z_f.shape, generator=generator)
            return mean(z_f - frozen_f.mean() - frozen_f.std() * noise) / s2, f2
    return f1, f2


@pytest.mark.parametrize("name", METHODS)
def test_losses(model, images, objectives, batches, name):
    trained = moved(model)
    method = bound(name, trained, objectives)
    forget, retain = batches
    losses = method.forget_loss(trained.encode, forget, retain), method.retain_loss(trained.encode, retain)
    expected = direct(name, trained, objectives, images)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [*OF_PICTURES, "random-encoder", "composite", "gradient-difference"])
def test_a_step_is_that_of_adamw_on_the_weighted_sum(model, images, name):
    objectives = Objectives.freeze(model, *(side[:16] for side in images), TASK, settings=replace(QUICK, steps=1))
    start = moved(model)
    stepped = cold(name, start, objectives, 0.7)
    optimizer = torch.optim.AdamW(start.encoder_parameters(), lr=QUICK.lr / WARMUP, weight_decay=0.0)
    method, (forget, retain) = bound(name, start, objectives), whole_minibatches(objectives)
    loss = method.retain_loss(start.encode, retain) + 0.7 * method.forget_loss(start.encode, forget, retain)
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(flat(stepped.encoder_parameters()), flat(start.encoder_parameters()), atol=2e-6, rtol=0)


def whole_minibatches(objectives):
    """Return the minibatches of the first training step, with the images in the same order."""
    generator = torch.Generator().manual_seed(objectives.settings.seed)
    orders = [torch.randperm(16, generator=generator) for _ in range(2)]
    return objectives.forget.batch(orders[0], 1), objectives.retain.batch(orders[1], 1)


@pytest.mark.parametrize("family", ["vqgan", "autoencoder", "mae"])
@pytest.mark.parametrize("name", OF_PICTURES)
def test_gradients_pass_through_the_decoder(images, family, name):
    model = tiny.model(family)
    objectives = Objectives.freeze(model, *images, TASK, settings=QUICK)
    method = bound(name, model, objectives)
    forget, retain = (side.batch(torch.arange(16)) for side in (objectives.forget, objectives.retain))
    for loss in (method.forget_loss(model.encode, forget, retain), method.retain_loss(model.encode, retain)):
        gradients = torch.autograd.grad(loss, model.encoder_parameters(), allow_unused=True)
        reached = [g is not None and g.abs().max().item() > 0 for g in gradients]
        assert sum(reached) > len(reached) / 2


@pytest.mark.parametrize("name", NEEDS_PICTURES)
def test_methods_that_compare_pictures_are_refused_for_diffusion(images, name):
    model = tiny.model("diffusion")
    objectives = Objectives.freeze(model, *images, TASK, settings=QUICK)
    with pytest.raises(UserError, match=f"{name} compares .* not defined for it"):
        cold(name, model, objectives)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NEEDS_PICTURES])
def test_methods_in_latents_serve_diffusion(images, name):
    model = tiny.model("diffusion")
    objectives = Objectives.freeze(model, *images, TASK, settings=QUICK)
    start = moved(model)
    trained = cold(name, start, objectives)
    assert torch.isfinite(flat(trained.encoder_parameters())).all()
    assert not torch.equal(flat(trained.encoder_parameters()), flat(start.encoder_parameters()))


# ---- sweeps


@pytest.mark.parametrize("name", METHODS)
def test_a_sweep_keeps_the_model_the_optimizer_and_the_method(model, images, name):
    """The sweep equals an explicit loop: one AdamW, one method, one warm-up, and one schedule per value."""
    objectives = Objectives.freeze(model, *images, TASK, settings=QUICK)
    start, values, steps, lr = moved(model), (0.1, 0.4), 4, 2e-3
    by_hand = copy.deepcopy(start)
    parameters = by_hand.encoder_parameters()
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    method = bound(name, by_hand, objectives, values[0])
    minibatches = minibatch_pairs(objectives.forget, objectives.retain, QUICK.batch_size, QUICK.seed)
    sweep = train(METHODS[name], start, objectives, values=values, steps=steps, lr=lr)
    taken = itertools.count(1)
    for value, trained in zip(values, sweep, strict=True):
        method.value = value
        for falling in (2.0, 1.5, 1.0, 0.5):
            rate = lr * min(next(taken) / WARMUP, falling, 1.0)
            forget, retain = next(minibatches)
            losses = method.forget_loss(by_hand.encode, forget, retain), method.retain_loss(by_hand.encode, retain)
            g1, g2 = ([*torch.autograd.grad(loss, parameters, materialize_grads=True)] for loss in losses)
            for parameter, gradient in zip(parameters, method.combine(losses[0].detach(), g1, g2), strict=True):
                parameter.grad = gradient
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        torch.testing.assert_close(flat(trained.encoder_parameters()), flat(parameters), atol=2e-6, rtol=0)


def test_a_sweep_yields_one_model_and_can_be_looked_at(model, objectives):
    """Evaluating a model between two values does not change the later models."""
    undisturbed = [copy.deepcopy(m) for m in train(METHODS["composite"], model, objectives)]
    assert len(undisturbed) == len(METHODS["composite"].grid)
    for kept, trained in zip(undisturbed, train(METHODS["composite"], model, objectives), strict=True):
        assert trained is not model
        objectives.evaluate(trained.encode)
        assert torch.equal(flat(kept.encoder_parameters()), flat(trained.encoder_parameters()))
    yielded = list(train(METHODS["composite"], model, objectives))
    assert all(trained is yielded[0] for trained in yielded)


@pytest.mark.parametrize("name", METHODS)
def test_ladders_rise(name):
    method = METHODS[name]
    assert list(method.grid) == sorted(method.grid)
    assert len(method.grid) == (0 if method.knob in (None, "epsilon") else 5)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_search_scales_is_the_ladder_or_the_gains(name):
    method, scaled = METHODS[name], METHODS[name].scaled(3.0).scaled(2.0)
    assert scaled.grid == pytest.approx([min(6 * value, 1.0 if name == "pcd" else math.inf) for value in method.grid])
    assert (scaled.name, scaled.knob, scaled.gain, method.gain) == (name, method.knob, 6.0, 1.0)


@pytest.mark.parametrize("name", EPSILON)
def test_a_gain_multiplies_what_the_multiplier_is_changed_by(name):
    kinds = METHODS[name], METHODS[name].scaled(3.0)
    once, thrice = (kind(types.SimpleNamespace(device="cpu"), None, 0.5) for kind in kinds)
    changed = math.log if name == "dual-ascent" else float
    start = changed(once.multiplier.item()) if once.multiplier else 0.0
    for method in (once, thrice):
        for f1 in (0.7, 0.8):
            method.weights(torch.tensor(f1), [], [])
    small, large = (changed(method.multiplier.item()) - start for method in (once, thrice))
    assert small > 0
    assert large == pytest.approx(3 * small, rel=1e-5)


# ---- two gradients into one


def combined(kind, g1, g2):
    one = kind(None, None).combine(torch.tensor(1.0), [torch.tensor(g1)], [torch.tensor(g2)])
    return one[0].double()


entries = st.integers(-8, 8).map(float)
vectors = st.lists(st.tuples(entries, entries), min_size=1, max_size=6)


@given(vectors)
@settings(deadline=None)
def test_pcgrad_is_its_definition(pairs):
    g1, g2 = torch.tensor(pairs, dtype=torch.float64).T
    dot = g1 @ g2
    expected = g1 + g2
    if dot < 0:
        expected = g1 - dot / (g2 @ g2) * g2 + g2 - dot / (g1 @ g1) * g1
        assert min(expected @ g1, expected @ g2) >= -1e-9
    torch.testing.assert_close(combined(PCGrad, *g1_g2(pairs)), expected, rtol=1e-4, atol=1e-4)


@given(vectors)
@settings(deadline=None)
def test_mgda_is_the_shortest_of_all_mixtures_and_falls_for_both(pairs):
    g1, g2 = torch.tensor(pairs, dtype=torch.float64).T
    a = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    shortest = (a * g1 + (1 - a) * g2).norm(dim=1).min()
    g = combined(MGDA, *g1_g2(pairs))
    assert g.norm() <= shortest + 1e-4
    assert min(g @ g1, g @ g2) >= g @ g - 1e-3


def g1_g2(pairs):
    return tuple(list(side) for side in zip(*pairs, strict=True))


def test_closed_forms():
    torch.testing.assert_close(combined(PCGrad, [1.0, 0.0], [-1.0, 1.0]), torch.tensor([0.5, 1.5]).double())
    torch.testing.assert_close(combined(PCGrad, [1.0, 0.0], [1.0, 1.0]), torch.tensor([2.0, 1.0]).double())
    torch.testing.assert_close(combined(MGDA, [2.0, 0.0], [0.0, 2.0]), torch.tensor([1.0, 1.0]).double())
    torch.testing.assert_close(combined(MGDA, [1.0, 0.0], [5.0, 0.0]), torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(combined(MGDA, [3.0, 1.0], [0.0, 0.0]), torch.zeros(2).double())
    torch.testing.assert_close(combined(PCGrad, [3.0, 1.0], [0.0, 0.0]), torch.tensor([3.0, 1.0]).double())


@pytest.mark.parametrize("kind", [PCGrad, MGDA])
def test_a_loss_scaler_changes_no_weight(kind):
    g1, g2 = torch.tensor([0.3, -1.0, 0.2]), torch.tensor([-0.5, 0.4, 0.1])
    small, large = (kind(None, None).weights(None, [c * g1], [c * g2]) for c in (1.0, 65536.0))
    torch.testing.assert_close(small, large)


# ---- multipliers and PCD, compared with their formulas in float64

LOSSES = ((0.9, 0.8), (0.7, 0.8), (0.6, 0.8), (0.65, 0.3), (0.2, 0.3), (0.31, 0.3))  # f1 and ε of successive steps


def multipliers(name):
    """Return the weight of ∇f1 in each step."""
    method = METHODS[name](types.SimpleNamespace(device="cpu"), None, LOSSES[0][1])
    found = []
    for f1, method.value in LOSSES:
        weight, one = method.weights(torch.tensor(f1), [], [])
        assert one == 1
        found.append(weight.item())
    return found


def test_dual_ascent_is_its_definition():
    expected, log, before = [], math.log(dual_ascent.START), 0.0
    for f1, epsilon in LOSSES:
        error = (f1 - epsilon) / max(f1, epsilon)
        log += dual_ascent.INTEGRAL * error + dual_ascent.PROPORTIONAL * (error - before)
        before = error
        expected.append(math.exp(log))
    assert multipliers("dual-ascent") == pytest.approx(expected, rel=1e-5)


def test_nu_pi_is_its_definition():
    expected, multiplier, average = [], 0.0, None
    for f1, epsilon in LOSSES:
        error = f1 - epsilon
        before = error if average is None else average
        average = nu_pi.AVERAGE * before + (1 - nu_pi.AVERAGE) * error
        multiplier = max(multiplier + nu_pi.INTEGRAL * error + nu_pi.PROPORTIONAL * (average - before), 0)
        expected.append(multiplier)
    assert multipliers("nu-pi") == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert 0 in expected


def test_augmented_lagrangian_is_its_definition():
    """The weight is the derivative of (max(λ + c·e, 0)² − λ²)/2c with respect to e; then λ ← max(λ + η·e, 0)."""
    expected, multiplier = [], 0.0
    for f1, epsilon in LOSSES:
        error = torch.tensor(f1 - epsilon, dtype=torch.float64, requires_grad=True)
        c = augmented_lagrangian.PENALTY
        (((multiplier + c * error).clamp(min=0) ** 2 - multiplier**2) / (2 * c)).backward()
        expected.append(error.grad.item())
        multiplier = max(multiplier + augmented_lagrangian.RATE * error.item(), 0)
    assert multipliers("augmented-lagrangian") == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", EPSILON)
def test_multipliers_end_at_their_epsilon(name):
    """The solution of min (θ − 2)² s.t. θ² ≤ 1 is θ = 1, λ = 1."""
    method = METHODS[name](types.SimpleNamespace(device="cpu"), None, 1.0)
    theta = torch.tensor(2.0)
    for _ in range(4000):
        (g,) = method.combine(theta.square(), [2 * theta], [2 * (theta - 2)])
        theta = theta - 0.02 * g
    assert theta.item() == pytest.approx(1, abs=1e-3)
    assert method.multiplier.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", EPSILON)
def test_multipliers_ask_for_less_and_less_where_f1_is_below_epsilon(name):
    method = METHODS[name](types.SimpleNamespace(device="cpu"), None, 5.0)
    weights = [method.weights(torch.tensor(1.0), [], [])[0].item() for _ in range(200)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(weights))
    assert weights[-1] < 1e-6


@pytest.mark.parametrize("name", EPSILON)
def test_a_sweep_of_multipliers_approaches_each_epsilon(name, model, images):
    """The λ of the two solutions differ by more than a factor of ten."""
    objectives = Objectives.freeze(model, *images, TASK, settings=QUICK)
    original = objectives.evaluate_f1(objectives.frozen)
    shares = (0.5, 0.1)
    sweep = train(METHODS[name], model, objectives, values=[share * original for share in shares], steps=40, lr=2e-3)
    reached = [objectives.evaluate_f1(trained.encode) / original for trained in sweep]
    assert reached == pytest.approx(shares, abs=0.05, rel=0.2)


def pcd_step(averages, count, tau, g1, g2):
    """Compute one PCD step in float64; return the averages of ‖∇f1‖² and ‖∇f2‖² and the direction."""
    squares = torch.stack((g1 @ g1, g2 @ g2))
    averages = pcd.DECAY * averages + (1 - pcd.DECAY) * squares
    s1, s2 = 1 / (averages / (1 - pcd.DECAY**count) + pcd.EPSILON).sqrt()
    a, b = s1 * g1, s2 * g2
    d = b if b @ a >= tau * (a @ a) else b + (tau - (a @ b) / (a @ a)) * a
    return averages, d * (g2.norm() / d.norm() if d.norm() > 0 else 0)


def gradients(count):
    """Yield pairs of gradients, float32 [5], of very different lengths (as ∇f1 and ∇f2) and increasingly opposed."""
    generator = torch.Generator().manual_seed(3)
    for step in range(count):
        g1, noise = torch.randn(2, 5, generator=generator)
        yield g1, 0.02 * (noise + (1 - step) * g1)


def test_pcd_is_its_definition():
    method, averages = METHODS["pcd"](None, None, 0.1), torch.zeros(2, dtype=torch.float64)
    active = 0
    for count, (g1, g2) in enumerate(gradients(6), 1):
        method.value = 0.1 if count < 4 else 0.5
        averages, expected = pcd_step(averages, count, method.value, g1.double(), g2.double())
        (found,) = method.combine(torch.tensor(1.0), [g1], [g2])
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
        active += not torch.allclose(expected, g2.double(), rtol=1e-3)
    assert 0 < active < 6


def test_pcd_is_torchjds():
    aggregation = pytest.importorskip("torchjd.aggregation")
    if not hasattr(aggregation, "PCD"):
        pytest.skip("needs TorchJD 0.18")
    method, theirs = METHODS["pcd"](None, None, 0.1), aggregation.PCD(tau=0.1)
    for count, (g1, g2) in enumerate(gradients(8), 1):
        method.value = theirs.tau = 0.1 if count < 4 else 0.5
        (found,) = method.combine(torch.tensor(1.0), [g1], [g2])
        expected = theirs(torch.stack((g2, g1)).double())
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_pcd_moves_away_from_the_unmodified_model(model, objectives):
    original = objectives.evaluate_f1(objectives.frozen)
    assert objectives.evaluate_f1(cold("pcd", model, objectives, 0.1, steps=10).encode) < original


def test_pcd_where_a_gradient_is_zero_or_not_finite():
    """With ∇f1 = 0 the result is ∇f2; with ∇f2 = 0, as at the unmodified model, it is a short step along ∇f1."""
    one, nothing = torch.tensor([1.0, 2.0]), torch.zeros(2)

    def step(method, g1, g2):
        return method.combine(torch.tensor(1.0), [g1], [g2])[0].float()

    torch.testing.assert_close(step(METHODS["pcd"](None, None), nothing, one), one)
    method = METHODS["pcd"](None, None)
    torch.testing.assert_close(step(method, one, nothing), pcd.FLOOR * method.value * one)
    assert step(method, one * math.inf, one).isnan().all()
    assert step(method, one, one).isfinite().all()


# ---- what methods do


def test_salun_leaves_the_less_salient_half_untouched(model, objectives):
    loss = objectives.f1(model.encode, objectives.forget.batch(torch.arange(48)))
    salience = flat(torch.autograd.grad(loss, model.encoder_parameters())).abs()
    mask = flat(bound("salun", copy.deepcopy(model), objectives).mask)
    assert mask.float().mean().item() == pytest.approx(0.5, abs=1e-3)
    assert salience[mask].min() >= salience[~mask].max() * (1 - 1e-3)
    trained = flat(cold("salun", model, objectives).encoder_parameters())
    assert torch.equal(trained[~mask], flat(model.encoder_parameters())[~mask])
    assert (trained[mask] != flat(model.encoder_parameters())[mask]).float().mean() > 0.9


def test_more_weight_forgets_more(model, images):
    objectives = Objectives.freeze(model, *images, TASK, settings=replace(QUICK, steps=25))
    f1 = [objectives.evaluate_f1(cold("composite", model, objectives, w).encode) for w in (0.002, 2.0)]
    assert f1[1] < f1[0] < objectives.evaluate_f1(model.encode)


def test_mgda_has_nowhere_to_go_from_the_unmodified_model(model, objectives, batches):
    method, gradients = bound("mgda", model, objectives), []
    for loss in (method.forget_loss(model.encode, *batches), method.retain_loss(model.encode, batches[1])):
        gradients.append(list(torch.autograd.grad(loss, model.encoder_parameters())))
    g1, g2 = gradients
    assert flat(method.combine(loss, g1, g2)).norm() <= flat(g2).norm() < 1e-4 * flat(g1).norm()


def test_what_only_the_user_can_say_is_asked_for(model, objectives):
    with pytest.raises(UserError, match="dual-ascent needs a value for its epsilon"):
        next(train(METHODS["dual-ascent"], model, objectives))
    assert METHODS["composite"](model, objectives).value == 0.2


def test_steps_are_reported(model, objectives):
    seen = []
    cold("composite", model, objectives, steps=5, on_step=lambda *said: seen.append(said))
    assert seen[0][0] == 1
    assert all(torch.isfinite(torch.tensor(said)).all() for said in seen)
