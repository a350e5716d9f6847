import importlib
import json

import pytest
import tiny
import torch

from unlearn_ext import models
from unlearn_ext.errors import UserError, require


def test_what_is_saved_loads_again_and_in_diffusers(model, tmp_path):
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 1, 8, 8)
    latents = models.load("vqgan", tmp_path).encode(images)
    assert torch.equal(latents, model.encode(images))
    theirs = importlib.import_module("diffusers").VQModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    with torch.no_grad():
        assert torch.equal(theirs(images).sample, model.decode(latents))
    assert [path.suffix for path in tmp_path.iterdir() if "model" in path.name] == [".safetensors"]


def test_only_the_encoder_is_trained(model):
    model.encode(torch.rand(2, 1, 8, 8)).sum().backward()
    trained = {name for name, p in model.module.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.module.named_parameters() if n.startswith(("encoder.", "quant_conv."))}
    assert len(trained) == len(model.encoder_parameters())
    assert all(p.grad is not None for p in model.encoder_parameters())


def test_channels_and_size(model):
    assert (model.family, model.channels, model.size, model.device.type) == ("vqgan", 1, 8, "cpu")


def test_unknown_family():
    with pytest.raises(UserError, match=r"`gan`.*vqgan, autoencoder"):
        models.load("gan", "anywhere")


def test_nothing_there(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match="no VQModel could be loaded"):
        models.load("vqgan", tmp_path)


def test_checkpoint_of_another_family(tmp_path):
    pytest.importorskip("diffusers")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match="checkpoint of AutoencoderKL"):
        models.load("vqgan", tmp_path)


def test_module_of_another_family():
    pytest.importorskip("diffusers")
    from unlearn_ext.models.vqgan import VQGAN

    with pytest.raises(UserError, match="this model is a Linear"):
        VQGAN(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_pickle_is_not_opened(family, tmp_path):
    tiny.model(family).save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    pickled = weights.with_suffix(".bin")
    torch.save(tiny.model(family).module.state_dict(), pickled)
    weights.unlink()
    for place in (tmp_path, pickled):
        with pytest.raises(UserError, match=rf"as a pickle, {pickled.name}, which would run any code that is in it"):
            models.load(family, place)


def test_a_missing_extra_is_named():
    with pytest.raises(UserError, match=r"pip install 'unlearn-ext\[images\]'"):
        require("a_package_that_is_not_there.part", "images")
