"""Family diffusion, on a U-Net small enough for seconds."""

import copy

import pytest
import tiny
import torch

from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.objectives import Objectives
from unlearn_ext.run import History, Run
from unlearn_ext.settings import Settings
from unlearn_ext.tasks import CenterCrop

diffusers = pytest.importorskip("diffusers")

TASK = CenterCrop(0.5)


@pytest.fixture
def diffusion():
    return tiny.model("diffusion")


def test_latents_weigh_every_block_the_same(diffusion, images):
    inputs = diffusion.inputs(images[0][:4], TASK)
    latents = diffusion.encode(*inputs)
    assert latents.shape == (4, 8 * 4 * 4 + 16 * 4 * 4 + 16 * 4 * 4)
    assert torch.equal(latents, diffusion.encode(*diffusion.inputs(images[0][:4], TASK)))  # drawn once


def test_an_image_is_what_the_scheduler_makes_of_it(diffusion, images):
    corrupted, noisy, timesteps = diffusion.inputs(images[0], TASK)
    assert torch.equal(corrupted, TASK(images[0]))
    assert noisy.shape == images[0].shape
    assert timesteps.dtype == torch.int64
    assert len(set(timesteps.tolist())) > 10


def test_only_the_way_down_is_trained_and_saved_changed(diffusion, images, tmp_path):
    before = copy.deepcopy(diffusion.module.state_dict())
    objectives = Objectives.freeze(diffusion, *images, TASK)
    start = objectives.evaluate_f1(diffusion.encode)
    run = Run(diffusion, objectives, Settings(steps=20, batch_size=16, lr=3e-3), History())
    f1, f2 = run.meet(start / 2, tolerance=start / 50)
    assert f1 == pytest.approx(start / 2, abs=start / 20)
    assert 0 < f2 < start
    diffusion.save_pretrained(tmp_path)
    loaded = models.load("diffusion", tmp_path)
    changed = {k for k, v in loaded.module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(key.startswith(("conv_in", "time_embedding", "down_blocks", "mid_block")) for key in changed)
    assert diffusers.UNet2DModel.from_pretrained(tmp_path).config.in_channels == 2


def test_samples_are_images_and_the_same_every_time(diffusion, images):
    inputs = diffusion.inputs(images[0][:2], TASK)
    with torch.no_grad():
        first, second = (diffusion.decode(diffusion.encode(*inputs), *inputs) for _ in range(2))
    assert first.shape == (2, 1, 8, 8)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)


def test_what_is_no_such_model_is_refused(diffusion, tmp_path):
    from unlearn_ext.models.diffusion import Diffusion

    with pytest.raises(UserError, match="needs twice as many in, not 1"):
        Diffusion(tiny.unet(in_channels=1), diffusers.DDPMScheduler())
    with pytest.raises(UserError, match="only epsilon"):
        Diffusion(tiny.unet(), diffusers.DDPMScheduler(prediction_type="sample"))
    with pytest.raises(UserError, match="no UNet2DModel could be loaded"):
        models.load("diffusion", tmp_path / "nothing")
    diffusion.module.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no scheduler beside the U-Net"):
        models.load("diffusion", tmp_path)
