import pytest
import torch

from unlearn_ext._utils import draws
from unlearn_ext.data import augment
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.objectives import Objectives

TASK = CenterCrop(0.5)


@pytest.fixture
def objectives(model, images):
    return Objectives.freeze(model, *images, TASK)


def test_the_unmodified_model_has_lost_nothing(model, objectives):
    f1, f2 = objectives.evaluate(model.encode)
    assert f1 > 0
    assert f2 == 0


def test_both_are_in_units_of_the_frozen_latents_variance(model, images, objectives):
    with torch.no_grad():
        z_f, z_r = (model.encode(TASK(side)) for side in images)
        for parameter in model.module.quant_conv.parameters():
            parameter.mul_(1.5)
        moved_f, moved_r = (model.encode(TASK(side)) for side in images)
    noise = objectives.forget.targets
    f1, f2 = objectives.evaluate(model.encode)
    assert f1 == pytest.approx((((moved_f - noise) ** 2).mean() / z_r.var()).item(), rel=1e-5)
    assert f2 == pytest.approx((((moved_r - z_r) ** 2).mean() / z_r.var()).item(), rel=1e-5)
    assert not torch.equal(z_f, moved_f)


def test_minibatches_average_to_the_whole(model, objectives):
    whole, _ = objectives.evaluate(model.encode)
    parts = [objectives.f1(model.encode, batch).item() for batch in objectives.forget.batches(torch.arange(48), 12)]
    assert sum(parts) / len(parts) == pytest.approx(whole, rel=1e-5)


def test_the_mean_noise_latent_has_the_gradient_that_noise_has_in_expectation(model, images, objectives):
    with torch.no_grad():
        noise = model.encode(torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(0)))

    def gradient(target):
        latents = model.encode(TASK(images[0]))[:, None]
        loss = (latents - target).square().mean() / objectives.variance
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.encoder_parameters())])

    torch.testing.assert_close(gradient(objectives.forget.targets), gradient(noise), rtol=1e-3, atol=1e-4)


def test_held_out_images_share_the_noise_target_and_the_unit(model, images, objectives):
    held_out = objectives.held_out(images[0][:5], images[1][:7])
    assert held_out.variance is objectives.variance
    assert held_out.forget.targets is objectives.forget.targets
    assert held_out.evaluate(model.encode)[1] == pytest.approx(0, abs=1e-9)


def test_more_images_may_be_held_out_than_trained_on(model, images):
    objectives = Objectives.freeze(model, images[0][:5], images[1][:7], TASK)
    assert objectives.held_out(*images).evaluate(model.encode)[1] == pytest.approx(0, abs=1e-9)


# ---- targets computed in every step


def shifted(model, images, **options):
    return Objectives.freeze(model, *images, TASK, augment=augment.shift, **options)


def test_under_augmentation_the_unmodified_model_has_still_lost_nothing(model, images):
    objectives = shifted(model, images)
    cached = Objectives.freeze(model, *images, TASK)
    assert objectives.retain.targets is None
    assert objectives.evaluate(model.encode) == pytest.approx(cached.evaluate(model.encode), rel=1e-5, abs=1e-9)
    for draw in (1, 2):
        lost = objectives.f2(model.encode, objectives.retain.batch(torch.arange(8), draw))
        assert lost.item() == pytest.approx(0, abs=1e-9)


def test_the_frozen_encoder_stays_when_the_model_it_was_is_trained(model, images):
    objectives = shifted(model, images)
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.1)
    assert objectives.evaluate_f2(model.encode) > 1e-3


class Seeing:
    """A model with a random input; its latents are the images concatenated with that input."""

    channels = 1
    random = True
    device = torch.device("cpu")

    def inputs(self, images, task, draw=0):
        return task(images), draws.normal(images, "seen", draw)

    def encode(self, images, seen):
        return torch.cat([images, seen], 1)


def test_few_noise_images_make_no_larger_f1_in_expectation(images):
    model = Seeing()
    objectives = Objectives.freeze(model, *images, TASK)
    assert objectives.forget.targets is None
    variance = objectives.variance.item()
    # The mean noise latent is 0 in the image half and equals the random input in the other half, so f1 is half of the
    # images' mean square.
    expected = TASK(images[0]).square().mean().item() / 2 / variance
    assert objectives.evaluate_f1(model.encode) == pytest.approx(expected, abs=0.05 / variance)
    index = torch.arange(48)
    steps = [objectives.f1(model.encode, objectives.forget.batch(index, draw)).item() for draw in range(1, 200)]
    assert sum(steps) / len(steps) == pytest.approx(expected, abs=0.01 / variance)
    biased = objectives.forget.batch(index, 1)
    mean = torch.stack([model.encode(noise, biased.inputs[1]) for noise in biased.noise]).mean(0)
    assert (model.encode(*biased.inputs) - mean).square().mean() / variance > expected + 0.1 / variance


def test_what_a_model_is_given_at_random_is_new_in_every_step(images):
    side = Objectives.freeze(Seeing(), *images, TASK).retain
    index = torch.arange(4)
    first, again, second, evaluated = (side.batch(index, draw).inputs[1] for draw in (1, 1, 2, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, evaluated)
    assert torch.equal(side.batch(index, 0).inputs[1], evaluated)
