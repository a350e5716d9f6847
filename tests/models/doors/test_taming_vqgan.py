import copy
import importlib
from pathlib import Path

import pytest
import torch
from originals import taming_vqgan as original

from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models.doors import taming_vqgan as door
from unlearn_ext.models.doors.checkpoint import Checkpoint

pytest.importorskip("diffusers")

SIDE = 32
DDCONFIG = {
    "double_z": False, "z_channels": 8, "resolution": SIDE, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 2], "num_res_blocks": 2, "attn_resolutions": [8], "dropout": 0.0,
}  # fmt: skip
KINDS = {
    "f4": {"attn_resolutions": []},
    "f8": {"ch_mult": [1, 2, 2, 2], "attn_resolutions": [8, 4]},
    "f16": {"ch_mult": [1, 1, 2, 2, 1], "attn_resolutions": [2], "num_res_blocks": 1},
    "grey": {"in_channels": 1, "out_ch": 1},
}


def made(**described):
    """Return an original of random weights, and its configuration as its .yaml has it."""
    described = DDCONFIG | described
    params = {"embed_dim": 4, "n_embed": 16, "ddconfig": described}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = original.VQModel(**params).eval()
        for name, weight in theirs.named_parameters():  # norms do not begin at one and zero, so that none is exchanged
            if "norm" in name:
                weight.data += 0.3 * torch.randn_like(weight)
    lossconfig = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"}
    return theirs, {
        "model": {"target": "taming.models.vqgan.VQModel", "params": params | {"lossconfig": lossconfig}},
        "data": {"target": "main.DataModuleFromConfig"},
    }


def checkpoint(theirs, config, **changed):
    """Return a checkpoint of an original, with weights added, or left out if they are None."""
    weights = theirs.state_dict() | changed
    return Checkpoint(Path("last.ckpt"), {n: w for n, w in weights.items() if w is not None}, config=config)


@pytest.fixture
def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_outputs_are_those_of_the_original(kind, images):
    theirs, config = made(**KINDS[kind])
    images = images[:, : theirs.encoder.conv_in.in_channels]
    file = checkpoint(theirs, config)
    assert door.recognises(file)
    ours = door.load(file)
    assert (ours.family, ours.channels, ours.size) == ("vqgan", images.shape[1], SIDE)
    images, theirs = images.double(), theirs.double()  # in float32, layers of random weights amplify rounding errors
    ours.module.double()
    with torch.no_grad():
        latents = theirs.encode(images)
        torch.testing.assert_close(ours.encode(images), latents, rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.decode(latents), theirs.decode(latents), rtol=0, atol=1e-9)


def test_every_weight_of_both_sides_has_one_name_on_the_other():
    theirs, config = made()
    ours = door.load(checkpoint(theirs, config))
    there = {name for name in theirs.state_dict() if not name.startswith("loss.")}
    pairs = door._pairs(ours.module)
    assert [pair.ours for pair in pairs] == [(name,) for name in ours.module.state_dict()]
    assert sorted(pair.theirs for pair in pairs) == sorted(there)


def test_a_changed_encoder_goes_back_into_the_original(images):
    theirs, config = made()
    file = checkpoint(theirs, config, **{"quantize.used": torch.arange(16)})
    ours = door.load(file)
    for parameter in ours.encoder_parameters():
        parameter.data.mul_(1.1)
    back = door.write_back(ours, file)
    assert list(back) == list(file.weights)
    assert all((back[n].shape, back[n].dtype) == (w.shape, w.dtype) for n, w in file.weights.items())
    changed = {name for name in back if not torch.equal(back[name], file.weights[name])}
    assert {name.split(".")[0] for name in changed} == {"encoder", "quant_conv"}
    again = copy.deepcopy(theirs)
    again.load_state_dict({name: weight for name, weight in back.items() if name != "quantize.used"})
    with torch.no_grad():
        torch.testing.assert_close(again.encode(images), ours.encode(images), rtol=1e-4, atol=1e-5)


def test_an_untouched_model_goes_back_bit_for_bit_in_its_own_dtypes():
    theirs, config = made()
    file = checkpoint(theirs.half(), config)
    back = door.write_back(door.load(file), file)
    assert all(torch.equal(back[name], weight) for name, weight in file.weights.items())
    assert {weight.dtype for weight in back.values()} == {torch.float16}


def test_what_is_loaded_does_not_share_memory_with_the_file():
    file = checkpoint(*made())
    ours = door.load(file)
    theirs = {weight.data_ptr() for weight in file.weights.values()}
    assert not theirs & {weight.data_ptr() for weight in ours.module.state_dict().values()}


def test_what_is_saved_loads_in_diffusers(images, tmp_path):
    ours = door.load(checkpoint(*made()))
    ours.save_pretrained(tmp_path)
    theirs = importlib.import_module("diffusers").VQModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    with torch.no_grad():
        assert torch.equal(theirs.encode(images).latents, ours.encode(images))
        assert torch.equal(models.load("vqgan", tmp_path).encode(images), ours.encode(images))


GUMBEL = {
    "quantize.embedding.weight": None, "quantize.embed.weight": torch.zeros(16, 4),
    "quantize.proj.weight": torch.zeros(16, 8, 1, 1),
}  # fmt: skip

WEIGHTS = {
    "a weight is missing": (
        {"encoder.mid.attn_1.q.weight": None},
        r"last.ckpt lacks encoder.mid.attn_1.q.weight: give the checkpoint and the .yaml of the same model",
    ),
    "a weight is left over": (
        {"encoder.down.2.attn.2.q.weight": torch.zeros(64, 64, 1, 1)},
        r"last.ckpt has encoder.down.2.attn.2.q.weight, which the model has no place for",
    ),
    "another shape": (
        {"quant_conv.weight": torch.zeros(4, 8)},
        r"quant_conv.weight with shape \[4, 8\] where the model has \[4, 8, 1, 1\]",
    ),
    "whole numbers": ({"quant_conv.bias": torch.zeros(4, dtype=torch.int8)}, "quant_conv.bias as torch.int8"),
    "Gumbel": (GUMBEL, "is a Gumbel VQ-GAN, whose quantiser draws its codes at random"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_cannot_be_loaded(kind):
    changed, sentence = WEIGHTS[kind]
    file = checkpoint(*made(), **changed)
    assert door.recognises(file)
    with pytest.raises(UserError, match=sentence):
        door.load(file)


CONFIGS = {
    "none": (lambda c: c.clear(), r"no configuration belongs to last.ckpt: put the .yaml .*, as last.yaml, or name"),
    "of something else": (lambda c: c.pop("model"), "has no section model: give the .yaml of its training"),
    "model is no section": (lambda c: c.update(model=3), "has no section model"),
    "no params": (lambda c: c["model"].pop("params"), "has no section model.params"),
    "no ddconfig": (lambda c: c["model"]["params"].pop("ddconfig"), "has no section model.params.ddconfig"),
    "Gumbel": (lambda c: c["model"].update(target="taming.models.vqgan.GumbelVQ"), "is that of a Gumbel VQ-GAN"),
    "no codebook": (lambda c: c["model"]["params"].pop("n_embed"), "has n_embed: None; it must be a whole number"),
    "other codebook": (lambda c: c["model"]["params"].update(n_embed=32), r"shape \[16, 4\] where .* \[32, 4\]"),
}
DESCRIBED = {
    "no resolution": ({"resolution": None}, "has resolution: None; it must be a whole number of at least 1"),
    "text": ({"ch": "32"}, "has ch: '32'; it must be a whole number"),
    "yes": ({"num_res_blocks": True}, "has num_res_blocks: True; it must be"),
    "negative": ({"z_channels": -8}, "has z_channels: -8; it must be"),
    "no list": ({"attn_resolutions": 8}, "has attn_resolutions: 8; it must be a list of whole numbers"),
    "text in a list": ({"ch_mult": [1, 1, "2"]}, "has ch_mult: '2'; it must be a whole number"),
    "no levels": ({"ch_mult": []}, "has no levels"),
    "other widths": ({"ch": 64}, r"with shape \[32, 3, 3, 3\] where the model has \[64, 3, 3, 3\]"),
    "not in groups": ({"ch": 33}, "no model can be built from the configuration of last.ckpt"),
    "other attention": ({"attn_resolutions": [16]}, "lacks encoder.down.1.attn.0"),
    "more blocks": ({"num_res_blocks": 3}, r"lacks encoder.down.0.block.2"),
    "a billion blocks": ({"num_res_blocks": 10**9}, "asks for more layers than last.ckpt has"),
    "a billion channels": ({"ch": 2**40}, "last.ckpt"),
    "average pooling": ({"resamp_with_conv": False}, r"has resamp_with_conv: False; diffusers.VQModel has only True"),
    "of a KL autoencoder": ({"double_z": True}, "has double_z: True; diffusers.VQModel has only False"),
    "tanh": ({"tanh_out": True}, "has tanh_out: True"),
    "of a fork": ({"window": 4}, "has window in ddconfig, which this package does not know"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations_that_cannot_be_followed(kind):
    theirs, config = made()
    change, sentence = CONFIGS[kind]
    config = copy.deepcopy(config)
    change(config)
    with pytest.raises(UserError, match=sentence):
        door.load(checkpoint(theirs, config))


@pytest.mark.parametrize("kind", DESCRIBED)
def test_descriptions_that_cannot_be_followed(kind):
    theirs, config = made()
    changed, sentence = DESCRIBED[kind]
    config = copy.deepcopy(config)
    config["model"]["params"]["ddconfig"] |= changed
    with pytest.raises(UserError, match=sentence):
        door.load(checkpoint(theirs, config))


@pytest.mark.parametrize("left_out", ["encoder.conv_in.weight", "quantize.embedding.weight", "quant_conv.weight"])
def test_other_checkpoints_are_not_recognised(left_out):
    assert not door.recognises(checkpoint(*made(), **{left_out: None}))
    prefixed = {f"first_stage_model.{name}": weight for name, weight in made()[0].state_dict().items()}
    assert not door.recognises(Checkpoint(Path("last.ckpt"), prefixed))
