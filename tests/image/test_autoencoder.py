import importlib

import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models.autoencoder import Autoencoder, AutoencoderKL
from unlearn_ext.settings import Settings
from unlearn_ext.tasks import CenterCrop

QUICK = {"task": CenterCrop(0.5), "epsilon": 0.1, "settings": Settings(steps=3, batch_size=16)}


@pytest.fixture(params=[True, False], ids=["quant_conv", "no quant_conv"])
def kl(request):
    """A tiny AutoencoderKL of 8x8 grey images with random weights."""
    return AutoencoderKL(tiny.kl(use_quant_conv=request.param))


@pytest.fixture
def pair():
    """Two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
        decoder = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Unflatten(1, (1, 8, 8)))
    return Autoencoder(encoder, decoder, channels=1, size=8)


def test_latents_are_the_mean_and_decode_to_images(kl, images):
    latents = kl.encode(images[0])
    assert torch.equal(latents, kl.module.encode(images[0]).latent_dist.mode())
    assert kl.decode(latents).shape == images[0].shape
    assert (kl.family, kl.channels, kl.size, kl.device.type) == ("autoencoder", 1, 8, "cpu")


def test_what_is_unlearned_loads_in_diffusers_and_differs_only_in_the_encoder(kl, images, tmp_path):
    ux.unlearn(kl, *images, **QUICK).save_pretrained(tmp_path)
    theirs = importlib.import_module("diffusers").AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    changed = {name for name, p in theirs.named_parameters() if not torch.equal(p, kl.module.get_parameter(name))}
    assert changed
    assert all(name.startswith(("encoder.", "quant_conv.")) for name in changed)
    last, before = (m.quant_conv if m.quant_conv is not None else m.encoder.conv_out for m in (theirs, kl.module))
    assert torch.equal(last.weight[2:], before.weight[2:]), "the rows of the variance have no gradient"
    latents = models.load("autoencoder", tmp_path).encode(images[0])
    assert torch.equal(latents, theirs.encode(images[0]).latent_dist.mean)


def test_a_checkpoint_of_another_family(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"family autoencoder is diffusers.AutoencoderKL; .* checkpoint of VQModel"):
        models.load("autoencoder", tmp_path)


def test_a_pair_of_modules_unlearns(pair, images):
    unlearned = ux.unlearn(pair, *images, **QUICK)
    assert not torch.equal(unlearned.encoder[1].weight, pair.encoder[1].weight)
    assert torch.equal(unlearned.decoder[0].weight, pair.decoder[0].weight)
    assert unlearned.decode(unlearned.encode(images[0])).shape == images[0].shape
    assert (pair.channels, pair.size, pair.device.type) == (1, 8, "cpu")


def test_a_pair_is_saved_as_weights_that_its_own_classes_read(pair, tmp_path):
    load_model = pytest.importorskip("safetensors.torch").load_model
    pair.save_pretrained(tmp_path)
    for module, name in ((pair.encoder, "encoder"), (pair.decoder, "decoder")):
        before = torch.cat([p.flatten() for p in module.parameters()])
        module.apply(lambda layer: layer.reset_parameters() if hasattr(layer, "reset_parameters") else None)
        load_model(module, tmp_path / f"{name}.safetensors")
        assert torch.equal(torch.cat([p.flatten() for p in module.parameters()]), before)
    with pytest.raises(UserError, match="whose classes only you know"):
        models.load("autoencoder", tmp_path)


def test_pairs_that_cannot_be_unlearned():
    linear = torch.nn.Linear(4, 4)
    with pytest.raises(UserError, match="no parameters"):
        Autoencoder(torch.nn.Flatten(), linear, channels=1, size=8)
    with pytest.raises(UserError, match="share parameters"):
        Autoencoder(linear, linear, channels=1, size=8)
    with pytest.raises(UserError, match="2 channels"):
        Autoencoder(linear, torch.nn.Linear(4, 4), channels=2, size=8)
