import math

import pytest
import torch

from unlearn_ext import pretrain
from unlearn_ext.data import divide
from unlearn_ext.pretrain import Recipe
from unlearn_ext.tasks import CenterCrop

pytest.importorskip("diffusers")
SMALL = Recipe(channels=(8,), latent_channels=4, codes=16, steps=40, batch_size=16)
TASK = CenterCrop(0.5)


@pytest.fixture
def data(images):
    return divide("stripes", *images)


def test_the_model_learns_to_fill_the_hole(images):
    hole = (..., slice(2, 6), slice(2, 6))
    pictures = torch.cat(images)
    model = pretrain.train(pictures, TASK, seed=0, recipe=SMALL)
    with torch.no_grad():
        filled = model.decode(model.encode(TASK(pictures)))
    assert (filled - pictures)[hole].abs().mean() < 0.7 * pictures[hole].abs().mean()


def test_training_is_seeded_and_leaves_the_callers_random_state_alone(images):
    state = torch.random.get_rng_state()
    short = Recipe(channels=(8,), latent_channels=4, codes=16, steps=4)
    a, b, c = (pretrain.train(images[0], TASK, seed=seed, recipe=short) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [torch.cat([p.flatten() for p in m.encoder_parameters()]) for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_second_time_it_comes_from_the_cache(data, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path))
    short = Recipe(channels=(8,), latent_channels=4, codes=16, steps=4)
    seen = []
    first = pretrain.pretrained(data, TASK, recipe=short, progress=seen.append)
    assert [path.suffix for path in tmp_path.iterdir()] == [""], "something unfinished was left"
    assert seen[0].stage == "pretrain"
    assert math.isfinite(seen[0].f2)

    monkeypatch.setattr(pretrain, "train", None)
    second = pretrain.pretrained(data, TASK, recipe=short)
    for p, q in zip(first.encoder_parameters(), second.encoder_parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(TypeError):  # another seed is another model, so it would have to train
        pretrain.pretrained(data, TASK, seed=1, recipe=short)
