import pytest
import torch

from unlearn_ext.objectives import Objectives
from unlearn_ext.tasks import CenterCrop

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
