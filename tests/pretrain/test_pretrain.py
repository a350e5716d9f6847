import math

import pytest
import torch

from unlearn_ext import models, pretrain
from unlearn_ext.data import divide
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop, Reconstruct

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
TASK = CenterCrop(0.5)
TINY = {
    "vqgan": {"channels": (8,), "latent_channels": 4, "codes": 16, "steps": 40},
    "autoencoder": {"channels": (8,), "latent_channels": 4, "steps": 40},
    "mae": {"patch": 2, "width": 16, "depth": 2, "steps": 60, "lr": 1e-2},
    "diffusion": {"channels": (32,), "steps": 200, "lr": 1e-2},
}
every_family = pytest.mark.parametrize("family", TINY)


def tiny(family, **changes):
    return pretrain.RECIPES[family](batch_size=16, **(TINY[family] | changes))


@pytest.fixture
def data(images):
    return divide("stripes", *images)


def test_a_family_without_a_recipe_needs_a_checkpoint():
    assert set(pretrain.RECIPES) == set(TINY)
    for family in models.FAMILIES:
        if family not in TINY:
            with pytest.raises(UserError, match=f"family {family} has no small model, so it needs --model"):
                pretrain.recipe_of(family)


@every_family
def test_the_model_learns_to_fill_the_hole(images, family):
    hole = (..., slice(2, 6), slice(2, 6))
    pictures = 0.6 * torch.cat(images).sign()  # hardly any noise, because sampled images have noise themselves
    model = pretrain.train(pictures, TASK, seed=0, recipe=tiny(family))
    inputs = model.inputs(pictures, TASK)
    with torch.no_grad():
        filled = model.decode(model.encode(*inputs), *inputs)
    assert (filled - pictures)[hole].abs().mean() < 0.7 * pictures[hole].abs().mean()


@every_family
def test_training_is_seeded_and_leaves_the_callers_random_state_alone(images, family):
    state = torch.random.get_rng_state()
    a, b, c = (pretrain.train(images[0], TASK, seed=seed, recipe=tiny(family, steps=4)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [torch.cat([p.flatten() for p in m.encoder_parameters()]) for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@every_family
def test_the_whole_model_is_trained_and_only_the_encoder_can_be_afterwards(images, family):
    one = pretrain.train(images[0], TASK, seed=0, recipe=tiny(family, steps=4))
    raw = tiny(family).build(1, 8)
    assert [p.requires_grad for p in one.module.parameters()] == [p.requires_grad for p in raw.module.parameters()]
    longer = pretrain.train(images[0], TASK, seed=0, recipe=tiny(family, steps=5))
    assert not any(torch.equal(p, q) for p, q in zip(one.module.parameters(), longer.module.parameters(), strict=True))


@every_family
def test_the_second_time_it_comes_from_the_cache(data, tmp_path, monkeypatch, family):
    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path))
    short, seen = tiny(family, steps=4), []
    first = pretrain.pretrained(family, data, TASK, recipe=short, progress=seen.append)
    assert list(tmp_path.iterdir()) == [first], "something unfinished was left"
    assert seen[0].stage == "pretrain"
    assert math.isfinite(seen[0].f2)
    assert models.load(family, first).size == 8

    monkeypatch.setattr(pretrain, "train", None)
    assert pretrain.pretrained(family, data, TASK, recipe=short) == first
    for change in ({"seed": 1}, {"recipe": tiny(family, steps=5)}):
        with pytest.raises(TypeError):  # not in the cache, so it would have to train
            pretrain.pretrained(family, data, TASK, **{"recipe": short, **change})
    with pytest.raises(TypeError):
        pretrain.pretrained(family, data, Reconstruct(), recipe=short)


def test_an_unknown_family_is_one_sentence(data):
    with pytest.raises(UserError, match="no model family `gan`"):
        pretrain.pretrained("gan", data, TASK)


@pytest.mark.parametrize(("family", "multiple"), [("vqgan", 4), ("autoencoder", 4), ("mae", 8), ("diffusion", 4)])
def test_a_side_that_the_model_cannot_have_is_one_sentence(family, multiple):
    recipe = pretrain.RECIPES[family]()
    recipe.check_size(6 * multiple)
    for side in (0, 6 * multiple + 1):
        with pytest.raises(UserError, match=f"whose side is a multiple of {multiple} pixels, not {side}"):
            recipe.check_size(side)
