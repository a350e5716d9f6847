"""Runs and sweeps that train an adapter: what they save, resume, continue and leave as it was."""

import json
from dataclasses import replace

import pytest
import torch

from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models.adapters import UNMODIFIED, Adapted
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.earlier import read_earlier
from unlearn_ext.unlearning.encoder import Encoder
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.phases import add_points, sweep
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.single import unlearn

pytest.importorskip("peft")

TASK = CenterCrop(0.5)
QUICK = Settings(steps=12, batch_size=8, lr=1e-2, lora=2)


def weights(model):
    return [value.clone() for value in model.module.state_dict().values()]


def near(one, other):
    return all(abs(a - b) < 1e-4 * abs(b) + 1e-7 for a, b in zip(one, other, strict=True))


def test_every_model_of_a_sweep_loads_with_the_recorded_numbers(model, images, tmp_path):
    forget, retain = images
    before, settings = weights(model), replace(QUICK, steps=6)
    front = sweep(model, forget, retain, task=TASK, points=1, settings=settings, out=tmp_path / "run")
    front = add_points(tmp_path / "run", model, forget, retain, task=TASK, epsilons=["55%"], settings=settings)
    for mine, its in zip(weights(model), before, strict=True):
        assert torch.equal(mine, its)
    assert torch.equal(
        models.load("vqgan", tmp_path / "run" / UNMODIFIED).encoder_parameters()[0], model.encoder_parameters()[0]
    )
    objectives = Objectives.freeze(model, forget, retain, TASK, settings=QUICK)
    ranks = {}
    for point in front:
        folder = tmp_path / "run" / point.name
        measured = objectives.evaluate(Encoder(models.load("vqgan", folder), QUICK))
        assert near(measured, (point.f1, point.f2))
        assert not list(folder.glob("diffusion_pytorch_model*"))
        ranks[point.name] = json.loads((folder / "adapter_of.json").read_text())["rank"]
    mixed = {point.name: point.made_of.count("anchor") for point in front if "*" in point.made_of}
    assert {name: ranks[name] for name in mixed} == {name: 2 * anchors for name, anchors in mixed.items()}
    made = front.at(0.5 * json.loads((tmp_path / "run" / "metrics.json").read_text())["f1_original"])
    assert isinstance(made.model, Adapted)
    assert near(objectives.evaluate(Encoder(made.model.merged(), QUICK)), (made.f1, made.f2))


def test_a_run_meets_its_epsilon_and_another_continues_it(model, images, tmp_path):
    forget, retain = images
    given = {"task": TASK, "settings": replace(QUICK, steps=30)}
    first = {"ana": forget[:24]}
    one = unlearn(model, first, retain, epsilon={"ana": "60%"}, out=tmp_path / "one", **given)
    after = read_earlier(tmp_path / "one")
    assert after.requests[0].f1 <= 0.61 * after.requests[0].f1_unmodified
    start = after.model(Adapted(model, 2, 0), 2)
    for mine, its in zip(start.encoder_parameters(), one.encoder_parameters(), strict=True):
        assert torch.equal(mine, its)
    both = {"ben": forget[24:], **first}
    unlearn(model, both, retain, epsilon={"ben": "50%"}, after=after, out=tmp_path / "two", **given)
    rows = {row.request: row for row in read_earlier(tmp_path / "two").requests}
    assert rows["ben"].f1 <= 0.52 * rows["ben"].f1_unmodified
    with pytest.warns(UserWarning, match="is finished"):
        again = unlearn(model, first, retain, epsilon={"ana": "60%"}, out=tmp_path / "one", resume=True, **given)
    for mine, its in zip(again.encoder_parameters(), one.encoder_parameters(), strict=True):
        assert torch.equal(mine, its)
    for rank, its in ((None, "an adapter of rank 2"), (4, "an adapter of rank 2")):
        other = replace(given["settings"], lora=rank)
        with pytest.raises(UserError, match=f"was trained with {its}: continue it with the same rank"):
            unlearn(model, both, retain, epsilon={"ben": "50%"}, after=after, task=TASK, settings=other)


@pytest.mark.filterwarnings("ignore:ε = ")
def test_a_run_without_adapter_is_not_continued_with_one(model, images, tmp_path):
    forget, retain = images
    plain = replace(QUICK, steps=3, lora=None)
    unlearn(model, {"ana": forget}, retain, epsilon={"ana": 0.5}, task=TASK, settings=plain, out=tmp_path)
    assert not (tmp_path / UNMODIFIED).exists()
    with pytest.raises(UserError, match="was trained with no adapter: continue it with the same rank"):
        unlearn(
            model, {"ben": forget}, retain, epsilon={"ben": 0.5}, task=TASK, settings=QUICK,
            after=read_earlier(tmp_path),
        )  # fmt: skip


def test_the_untouched_pipeline_draws_the_same_pictures_with_the_saved_adapter(tmp_path, monkeypatch):
    import pipelines

    from unlearn_ext.models import latent_diffusion
    from unlearn_ext.models.latent_diffusion import LatentDiffusion

    monkeypatch.setattr(latent_diffusion, "SAMPLING_STEPS", 3)
    pipelines.inpainting().save_pretrained(tmp_path / "pipeline")
    model = models.load("latent-diffusion", tmp_path / "pipeline")
    forget, retain = torch.rand(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quick = replace(QUICK, steps=10, lora=4)
    made = unlearn(model, forget, retain, task=TASK, epsilon="50%", settings=quick, out=tmp_path / "run")
    (point,) = (tmp_path / "run").glob("eps-*")
    pipeline = type(pipelines.inpainting()).from_pretrained(tmp_path / "pipeline", safety_checker=None)
    pipeline.load_lora_weights(str(point))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pictures = models.reconstruct(made, forget, TASK)
    torch.testing.assert_close(models.reconstruct(LatentDiffusion(pipeline), forget, TASK), pictures, rtol=0, atol=1e-5)
    assert (models.reconstruct(model, forget, TASK) - pictures).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [0, -1, 1.5, "16"])
def test_a_rank_is_a_whole_number(rank):
    with pytest.raises(UserError, match=r"lora is .*; it must be a whole number, 1 or more"):
        Settings(lora=rank)
