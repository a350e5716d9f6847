"""Family diffusion, on a U-Net small enough for seconds."""

import copy

import pytest
import tiny
import torch

from unlearn_ext import draws, models
from unlearn_ext.errors import UserError
from unlearn_ext.objectives import Objectives
from unlearn_ext.run import History, Run
from unlearn_ext.settings import Settings
from unlearn_ext.tasks import CenterCrop, Reconstruct

diffusers = pytest.importorskip("diffusers")

TASK = CenterCrop(0.5)


@pytest.fixture
def diffusion():
    return tiny.model("diffusion")


def test_latents_are_what_the_way_up_is_given_but_for_the_first_convolution_and_weigh_the_same(diffusion, images):
    inputs = diffusion.inputs(images[0][:4], TASK)
    latents = diffusion.encode(*inputs)
    given = []
    for block in diffusion.module.up_blocks:
        block.register_forward_pre_hook(lambda _, args: given.extend(args[1]))
    diffusion.module.mid_block.register_forward_hook(lambda _, __, output: given.append(output))
    diffusion.module(diffusion.seen(*inputs), inputs[2])
    assert len(given) == 5
    first = diffusion.module.conv_in(diffusion.seen(*inputs))
    given = [feature for feature in given if not (feature.shape == first.shape and torch.equal(feature, first))]
    assert len(given) == 4
    assert latents.shape == (4, sum(feature[0].numel() for feature in given))
    mean = sum(feature.square().mean() for feature in given) / len(given)
    torch.testing.assert_close(latents.square().mean(), mean)
    assert torch.equal(latents, diffusion.encode(*diffusion.inputs(images[0][:4], TASK)))  # drawn once


def test_there_is_noise_on_what_is_hidden_and_the_rest_is_as_it_is(diffusion, images):
    given, noise, timesteps, hole = diffusion.inputs(images[0], TASK)
    assert torch.equal(hole, TASK.mask(images[0]).expand(48, 1, 8, 8))
    assert timesteps.dtype == torch.int64
    assert len(set(timesteps.tolist())) > 10
    corrupted, noisy = diffusion.seen(given, noise, timesteps, hole).split(1, 1)
    assert torch.equal(corrupted, TASK(images[0]))
    assert torch.equal(noisy.masked_fill(hole, 0), corrupted)
    assert torch.equal(noisy[hole], diffusion.scheduler.add_noise(images[0], noise, timesteps)[hole])


def test_noise_in_the_place_of_an_image_leaves_nothing_of_it(diffusion, images):
    _, *seen = diffusion.inputs(images[0], TASK)
    noise = draws.normal(images[0], "any")
    _, *others = diffusion.inputs(images[1], TASK)
    others[:2] = seen[:2]  # the same noise and timesteps as the first images have
    assert torch.equal(diffusion.encode(noise, *seen), diffusion.encode(noise, *others))


def test_a_task_that_hides_nothing_is_refused(diffusion, images):
    with pytest.raises(UserError, match="task reconstruct hides nothing, and family diffusion only fills in"):
        diffusion.inputs(images[0], Reconstruct())
    with pytest.raises(UserError, match="needs a task with a mask"):
        diffusion.inputs(images[0], lambda pictures: pictures)


def test_only_the_way_down_is_trained_and_saved_changed(diffusion, images, tmp_path):
    before = copy.deepcopy(diffusion.module.state_dict())
    objectives = Objectives.freeze(diffusion, *images, TASK)
    start = objectives.evaluate_f1(diffusion.encode)
    run = Run(diffusion, objectives, Settings(steps=20, batch_size=16, lr=3e-3, tolerance=0.02), History())
    f1, f2 = run.meet(start / 2, start)
    assert f1 == pytest.approx(start / 2, abs=start / 20)
    assert 0 < f2 < start
    diffusion.save_pretrained(tmp_path)
    loaded = models.load("diffusion", tmp_path)
    changed = {k for k, v in loaded.module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(key.startswith(("down_blocks", "mid_block")) for key in changed)
    assert diffusers.UNet2DModel.from_pretrained(tmp_path).config.in_channels == 2


def test_samples_are_images_and_the_same_every_time(diffusion, images):
    inputs = diffusion.inputs(images[0][:2], TASK)
    with torch.no_grad():
        first, second = (diffusion.decode(diffusion.encode(*inputs), *inputs) for _ in range(2))
    assert first.shape == (2, 1, 8, 8)
    assert torch.equal(first, second)
    hole = inputs[3]
    other = images[0][:2].masked_fill(hole, 0.5)
    with torch.no_grad():
        assert torch.equal(diffusion.decode(None, other, *inputs[1:]), first), "the hidden part was looked at"
    assert torch.equal(first[~hole], images[0][:2][~hole])
    assert not torch.isclose(first[hole], images[0][:2][hole]).any()


def test_what_is_no_such_model_is_refused(diffusion, tmp_path):
    from unlearn_ext.models.diffusion import Diffusion

    with pytest.raises(UserError, match="needs twice as many in, not 1"):
        Diffusion(tiny.unet(in_channels=1), diffusers.DDPMScheduler())
    with pytest.raises(UserError, match="only epsilon"):
        Diffusion(tiny.unet(), diffusers.DDPMScheduler(prediction_type="sample"))
    with pytest.raises(UserError, match="there is no folder"):
        models.load("diffusion", tmp_path / "nothing")
    diffusion.module.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no scheduler beside the U-Net"):
        models.load("diffusion", tmp_path)
