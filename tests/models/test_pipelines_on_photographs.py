"""Latent-diffusion pipelines that were trained on photographs, through a sweep."""

from pathlib import Path

import pytest
import torch

import unlearn_ext as ux
from unlearn_ext import data, models
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.settings import Settings

pytest.importorskip("diffusers")
import pipelines
import trained_pipelines

from unlearn_ext.models.latent_diffusion import LatentDiffusion

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "tiny-imagenet-20" / "train"
CLASSES = {"forget": ("goldfish", "lion", "monarch"), "retain": ("lakeside", "barn", "lighthouse")}
TASK = CenterCrop(0.5)


def photographs(names):
    """Return 32 photographs of each class, uint8 [96, 3, 32, 32]."""
    size = trained_pipelines.SIDE
    folders = [folder for folder in sorted(PHOTOGRAPHS.iterdir()) if folder.name.endswith(names)]
    assert len(folders) == len(names)
    return torch.cat([data.load_images(folder, size=size, channels=3)[:32] for folder in folders])


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs of ../shared/data are not here")
@pytest.mark.parametrize("make", [pipelines.inpainting, pipelines.pix2pix])
def test_every_epsilon_of_a_sweep_is_met_and_the_pipeline_draws(make, tmp_path):
    forget, retain = (photographs(names) for names in CLASSES.values())
    pipeline = trained_pipelines.trained(make, torch.cat([forget, retain]), TASK, vae_steps=150, unet_steps=200)
    model = LatentDiffusion(pipeline)
    settings = Settings(steps=30, batch_size=16)
    front = ux.sweep(model, forget, retain, task=TASK, points=3, settings=settings, out=tmp_path, pictures="none")
    most, least = front.points[0].f1, front.points[-1].f1
    asked = [point for point in front if point.role == "epsilon"]
    assert len(asked) == 3
    assert all(abs(point.f1 - point.epsilon) < 0.03 * (least - most) for point in asked)
    assert [point.f2 for point in asked] == sorted((point.f2 for point in asked), reverse=True)
    loaded = type(pipeline).from_pretrained(tmp_path / asked[0].name)
    assert all(torch.equal(a, b) for a, b in zip(loaded.vae.parameters(), pipeline.vae.parameters(), strict=True))
    few = retain[:4].float() / 127.5 - 1
    made = models.reconstruct(models.load("latent-diffusion", tmp_path / asked[0].name), few, TASK)
    assert made.shape == few.shape
    assert made.isfinite().all()
