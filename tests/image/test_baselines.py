"""Every baseline is what it says, and looks at both sets."""

from __future__ import annotations

import copy
import types
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_ext.baselines import METHODS, train
from unlearn_ext.baselines.mgda import MGDA
from unlearn_ext.baselines.pcgrad import PCGrad
from unlearn_ext.errors import UserError
from unlearn_ext.objectives import Objectives
from unlearn_ext.settings import Settings
from unlearn_ext.tasks import CenterCrop

TASK = CenterCrop(0.5)
QUICK = Settings(steps=3, batch_size=16)
OF_PICTURES = ("max-loss", "noisy-label", "retain-label")


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def moved(model):
    """Away from where f2 and its gradient are 0, as after some steps."""
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


# ---- both sets


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_other_images_make_another_model(model, images, objectives, name, side):
    other = replace(getattr(objectives, side), images=images[side == "retain"].flip(-1) * 0.5)
    start = moved(model)
    a, b = (
        flat(train(METHODS[name], start, given, value=0.2).encoder_parameters())
        for given in (objectives, replace(objectives, **{side: other}))
    )
    assert not torch.equal(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_only_a_copy_of_the_encoder_is_trained_and_the_same_every_time(model, objectives, name):
    start = moved(model)
    before = flat(start.module.parameters())
    first, second = (train(METHODS[name], start, objectives, value=0.2) for _ in range(2))
    assert torch.equal(flat(start.module.parameters()), before)
    assert torch.equal(flat(first.module.parameters()), flat(second.module.parameters()))
    assert not torch.equal(flat(first.encoder_parameters()), flat(start.encoder_parameters()))
    for part, was in zip(first.module.decoder.parameters(), start.module.decoder.parameters(), strict=True):
        assert torch.equal(part, was)


# ---- definitions, against a direct computation


def direct(name, model, objectives, images):
    """(forget loss, retain loss) over the first 16 images of each side, written out."""
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
    stepped = train(METHODS[name], start, objectives, value=0.7)
    optimizer = torch.optim.AdamW(start.encoder_parameters(), lr=QUICK.lr, weight_decay=0.0)
    method, (forget, retain) = bound(name, start, objectives), whole_minibatches(objectives)
    loss = method.retain_loss(start.encode, retain) + 0.7 * method.forget_loss(start.encode, forget, retain)
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(flat(stepped.encoder_parameters()), flat(start.encoder_parameters()), atol=2e-6, rtol=0)


def whole_minibatches(objectives):
    """The first step's, in the order in which they are drawn there."""
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


@pytest.mark.parametrize("name", [*OF_PICTURES, "gradient-difference"])
def test_no_picture_comes_of_one_step_of_diffusion(images, name):
    model = tiny.model("diffusion")
    objectives = Objectives.freeze(model, *images, TASK, settings=QUICK)
    with pytest.raises(UserError, match=f"{name} compares .* not defined for it"):
        train(METHODS[name], model, objectives)


@pytest.mark.parametrize("name", ["random-encoder", "composite", "pcgrad", "mgda", "dual-ascent", "salun"])
def test_methods_in_latents_serve_diffusion(images, name):
    model = tiny.model("diffusion")
    objectives = Objectives.freeze(model, *images, TASK, settings=QUICK)
    start = moved(model)
    trained = train(METHODS[name], start, objectives, value=0.2)
    assert torch.isfinite(flat(trained.encoder_parameters())).all()
    assert not torch.equal(flat(trained.encoder_parameters()), flat(start.encoder_parameters()))


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


def test_dual_ascent_ends_at_its_epsilon():
    """min (θ − 2)² s.t. θ² ≤ 1: θ = 1, λ = 1."""
    ascent = METHODS["dual-ascent"](types.SimpleNamespace(device="cpu"), None, 1.0)
    theta = torch.tensor(2.0)
    for _ in range(4000):
        (g,) = ascent.combine(theta.square(), [2 * theta], [2 * (theta - 2)])
        theta = theta - 0.02 * g
    assert theta.item() == pytest.approx(1, abs=1e-3)
    assert ascent.multiplier.item() == pytest.approx(1, abs=1e-3)


def test_dual_ascent_asks_for_nothing_above_epsilon():
    ascent = METHODS["dual-ascent"](types.SimpleNamespace(device="cpu"), None, 5.0)
    (g,) = ascent.combine(torch.tensor(1.0), [torch.tensor([1.0])], [torch.tensor([7.0])])
    assert g.item() == 7


def test_salun_leaves_the_less_salient_half_untouched(model, objectives):
    loss = objectives.f1(model.encode, objectives.forget.batch(torch.arange(48)))
    salience = flat(torch.autograd.grad(loss, model.encoder_parameters())).abs()
    mask = flat(bound("salun", copy.deepcopy(model), objectives).mask)
    assert mask.float().mean().item() == pytest.approx(0.5, abs=1e-3)
    assert salience[mask].min() >= salience[~mask].max() * (1 - 1e-3)
    trained = flat(train(METHODS["salun"], model, objectives, value=0.2).encoder_parameters())
    assert torch.equal(trained[~mask], flat(model.encoder_parameters())[~mask])
    assert (trained[mask] != flat(model.encoder_parameters())[mask]).float().mean() > 0.9


def test_more_weight_forgets_more(model, images):
    objectives = Objectives.freeze(model, *images, TASK, settings=replace(QUICK, steps=25))
    f1 = [objectives.evaluate_f1(train(METHODS["composite"], model, objectives, value=w).encode) for w in (0.002, 2.0)]
    assert f1[1] < f1[0] < objectives.evaluate_f1(model.encode)


def test_mgda_has_nowhere_to_go_from_the_unmodified_model(model, objectives, batches):
    method, gradients = bound("mgda", model, objectives), []
    for loss in (method.forget_loss(model.encode, *batches), method.retain_loss(model.encode, batches[1])):
        gradients.append(list(torch.autograd.grad(loss, model.encoder_parameters())))
    g1, g2 = gradients
    assert flat(method.combine(loss, g1, g2)).norm() <= flat(g2).norm() < 1e-4 * flat(g1).norm()


def test_what_only_the_user_can_say_is_asked_for(model, objectives):
    with pytest.raises(UserError, match="dual-ascent needs a value for its epsilon"):
        train(METHODS["dual-ascent"], model, objectives)
    assert METHODS["composite"](model, objectives).value == 0.2


def test_steps_are_reported(model, objectives):
    seen = []
    train(METHODS["composite"], model, objectives, value=0.2, steps=5, on_step=lambda *said: seen.append(said))
    assert seen[0][0] == 1
    assert all(torch.isfinite(torch.tensor(said)).all() for said in seen)
