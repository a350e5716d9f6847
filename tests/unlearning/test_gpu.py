"""Every family on a GPU: objectives compared with the CPU, whole sweeps, mixed precision, baselines."""

import json

import numpy as np
import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext import demo, models
from unlearn_ext.baselines import METHODS, train
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

DEVICE = torch.device("cuda")
QUICK = Settings(steps=20, batch_size=16)


def on_gpu(family):
    model = tiny.model(family)
    model.module.to(DEVICE)
    return model


@pytest.mark.parametrize("family", demo.CHOICES)
def test_objectives_are_those_of_the_cpu(family, images):
    measured = []
    for model, others in ((tiny.model(family), tiny.model(family)), (on_gpu(family), on_gpu(family))):
        with torch.no_grad():
            for p in others.encoder_parameters():
                p.mul_(1.1)
        measured.append(Objectives.freeze(model, *images, demo.TASK, settings=QUICK).evaluate(others.encode))
    assert measured[1] == pytest.approx(measured[0], rel=1e-2)  # convolutions may use TF32


@pytest.mark.parametrize("family", demo.CHOICES)
def test_a_sweep_meets_its_epsilons(family, images, tmp_path):
    validation = tuple(side[:8] for side in images)
    front = ux.sweep(
        on_gpu(family), *images, task=demo.TASK, points=1, held_out=validation, out=tmp_path, settings=QUICK
    )
    original = json.loads((tmp_path / "metrics.json").read_text())["f1_original"]
    between = next(point for point in front.points if point.role == "epsilon")
    assert abs(between.miss) <= 0.02 * original
    kept = Objectives.freeze(tiny.model(family), *images, demo.TASK, settings=QUICK)
    again = models.load(family, tmp_path / between.name)  # on the CPU
    assert kept.evaluate(again.encode) == pytest.approx(between.values, rel=2e-2)
    with np.load(tmp_path / "samples.npz") as samples:
        assert between.name in samples


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_epsilon_is_met_in_mixed_precision(precision, images):
    model, settings = on_gpu("vqgan"), Settings(steps=20, batch_size=16, precision=precision)
    objectives = Objectives.freeze(model, *images, demo.TASK, settings=settings)
    original = objectives.evaluate_f1(objectives.frozen)
    unlearned = ux.unlearn(model, *images, task=demo.TASK, epsilon=original / 2, settings=settings)
    assert objectives.evaluate_f1(unlearned.encode) == pytest.approx(original / 2, abs=0.02 * original)


@pytest.mark.parametrize("family", demo.CHOICES)
@pytest.mark.parametrize("name", METHODS)
def test_baselines_train(name, family, images):
    model = on_gpu(family)
    objectives = Objectives.freeze(model, *images, demo.TASK, settings=Settings(steps=2, batch_size=16))
    if family == "diffusion" and METHODS[name].needs_pictures:
        pytest.skip("not defined for diffusion models")
    (trained,) = train(METHODS[name], model, objectives, values=[0.2])
    assert all(p.device.type == DEVICE.type and p.isfinite().all() for p in trained.encoder_parameters())
