import copy
import importlib
import json
import logging
from pathlib import Path

import pytest
import torch
from originals import taesd as original

from unlearn_ext import models
from unlearn_ext.data.decode import decode
from unlearn_ext.errors import UserError
from unlearn_ext.models.doors import taesd as door
from unlearn_ext.models.doors.checkpoint import Checkpoint
from unlearn_ext.tasks import Reconstruct

pytest.importorskip("diffusers")

SIDE = 16
DATA = Path(__file__).parents[4] / "shared" / "data"
KINDS = {"taesd": (4, False), "taef1": (16, False), "taef2": (32, True)}


def made(kind):
    """Return an original's encoder and decoder of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = original.encoder(*KINDS[kind]).eval(), original.decoder(*KINDS[kind]).eval()
        for name, weight in (named for part in pair for named in part.named_parameters()):
            if ".pool.1." in name:  # norms do not begin at one and zero
                weight.data += 0.3 * torch.randn_like(weight)
    return pair


def written(folder, kind="taesd", **changed):
    """Write an original's two files; return them as checkpoints. ``changed`` replaces weights of the encoder."""
    files = []
    for part, module in zip(("encoder", "decoder"), made(kind), strict=True):
        weights = module.state_dict() | (changed if part == "encoder" else {})
        weights = {name: weight for name, weight in weights.items() if weight is not None}
        torch.save(weights, folder / f"{kind}_{part}.pth")
        files.append(Checkpoint(folder / f"{kind}_{part}.pth", weights))
    return files


@pytest.fixture
def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", ["encoder", "decoder"])
def test_the_outputs_are_those_of_the_original(kind, named, images, tmp_path):
    encoder, decoder = made(kind)
    file = written(tmp_path, kind)[named == "decoder"]
    assert door.recognises(file)
    ours = door.load(file)
    assert (ours.family, ours.channels) == ("autoencoder", 3)
    with torch.no_grad():
        latents = encoder((images + 1) / 2)  # the original's images are in [0, 1]
        torch.testing.assert_close(ours.encode(images), latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(latents), decoder(latents) * 2 - 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_both_sides_has_one_name_on_the_other(kind, tmp_path):
    ours = door.load(written(tmp_path, kind)[0])
    for part, theirs in zip(("encoder", "decoder"), made(kind), strict=True):
        layers = ours.module.get_submodule(part)
        pairs = door._pairs(part, layers)
        assert [pair.ours for pair in pairs] == [(name,) for name in layers.state_dict()]
        assert sorted(pair.theirs for pair in pairs) == sorted(theirs.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_as_it_was(kind, images, tmp_path, caplog):
    ours = door.load(Checkpoint(**vars(written(tmp_path, kind)[0]) | {"config": {"sample_size": SIDE}}))
    ours.save_pretrained(tmp_path / "saved")
    with caplog.at_level(logging.WARNING), torch.no_grad():
        logging.getLogger("diffusers").addHandler(caplog.handler)  # it does not propagate
        again = models.load("autoencoder", tmp_path / "saved")
        logging.getLogger("diffusers").removeHandler(caplog.handler)
        assert torch.equal(again.encode(images), ours.encode(images))
        assert torch.equal(again.decode(again.encode(images)), ours.decode(ours.encode(images)))
    assert not caplog.records
    assert (again.size, type(again.module)) == (SIDE, type(ours.module))
    name = json.loads((tmp_path / "saved" / "config.json").read_text())["_class_name"]
    assert name == ("TAEF2" if kind == "taef2" else "AutoencoderTiny")
    if kind != "taef2":
        theirs = importlib.import_module("diffusers").AutoencoderTiny
        with torch.no_grad():
            latents = theirs.from_pretrained(tmp_path / "saved", low_cpu_mem_usage=False).encode(images).latents
            assert torch.equal(latents, ours.encode(images))


@pytest.mark.parametrize("kind", ["taesd", "taef2"])
def test_a_changed_encoder_goes_back_into_the_original(kind, images, tmp_path):
    file = written(tmp_path, kind)[0]
    ours = door.load(file)
    for parameter in ours.encoder_parameters():
        parameter.data.mul_(1.1)
    back = door.write_back(ours, file)
    assert list(back) == list(file.weights)
    assert not torch.equal(back["0.weight"], file.weights["0.weight"])
    encoder, _ = made(kind)
    encoder.load_state_dict(back)
    with torch.no_grad():
        torch.testing.assert_close(encoder((images + 1) / 2), ours.encode(images), rtol=1e-5, atol=1e-5)


def test_float16_goes_back_bit_for_bit(tmp_path):
    file = written(tmp_path, **{n: w.half() for n, w in made("taesd")[0].state_dict().items()})[0]
    back = door.write_back(door.load(file), file)
    assert all(torch.equal(back[name], weight) for name, weight in file.weights.items())
    assert {weight.dtype for weight in back.values()} == {torch.float16}


def test_the_decoder_is_not_written_back(tmp_path):
    _, decoder = written(tmp_path)
    with pytest.raises(UserError, match=r"taesd_decoder.pth is the decoder, which .* give the encoder's file"):
        door.write_back(door.load(decoder), decoder)


@pytest.mark.parametrize("kind", ["taesd", "taef2"])
def test_checkpointing_changes_no_gradient(kind, images, tmp_path):
    ours = door.load(written(tmp_path, kind)[0])
    recomputing = copy.deepcopy(ours)
    recomputing.enable_gradient_checkpointing()
    for one in (ours, recomputing):
        one.encode(images).square().sum().backward()
    for ours_, theirs in zip(ours.encoder_parameters(), recomputing.encoder_parameters(), strict=True):
        torch.testing.assert_close(ours_.grad, theirs.grad)


def test_the_size_is_the_configurations(tmp_path):
    encoder, _ = written(tmp_path)
    assert door.load(Checkpoint(**vars(encoder) | {"config": {"sample_size": 24}})).size == 24
    assert door.load(encoder).size == 256
    door.load(encoder).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sample_size"] == 256
    with pytest.raises(UserError, match="multiples of 8 pixels"):
        _ = door.load(Checkpoint(**vars(encoder) | {"config": {"sample_size": 20}})).size


@pytest.mark.parametrize("named", [".", "taef2_encoder.pth", "taef2_decoder.pth"])
def test_a_folder_and_either_file_load_by_themselves(named, images, tmp_path):
    encoder, _ = written(tmp_path, "taef2")
    (tmp_path / "taef2_encoder.json").write_text('{"sample_size": 24}')
    assert models.family_of(tmp_path / named) == "autoencoder"
    ours = models.load("autoencoder", tmp_path / named)
    assert ours.size == 24
    with torch.no_grad():
        assert torch.equal(ours.encode(images), door.load(encoder).encode(images))


def test_a_folder_of_both_files(tmp_path):
    assert door.file_in(tmp_path) is None
    encoder, decoder = written(tmp_path)
    assert (door.companions(encoder.path), door.companions(decoder.path)) == ([decoder.path], [encoder.path])
    assert door.file_in(tmp_path) == tmp_path / "taesd_encoder.pth"
    assert (door.file_in(encoder.path), door.file_in(decoder.path)) == (None, encoder.path)
    pair = [path.with_name(f"autoencoder_{path.name.removeprefix('taesd_')}") for path in (encoder.path, decoder.path)]
    for path, other in zip(pair, (encoder.path, decoder.path), strict=True):
        path.write_bytes(other.read_bytes())
    assert door.file_in(pair[1]) == pair[0]
    for path in pair:
        path.unlink()
    torch.save({"weight": torch.ones(3)}, tmp_path / "encoder.pth")  # a pair of another kind
    torch.save({"weight": torch.ones(3)}, tmp_path / "decoder.pth")
    assert door.file_in(tmp_path) == encoder.path
    assert door.file_in(tmp_path / "decoder.pth") is None
    written(tmp_path, "taef1")
    with pytest.raises(UserError, match=r"has taef1_encoder.pth and taesd_encoder.pth: give one of the files"):
        door.file_in(tmp_path)
    for path in tmp_path.glob("*_decoder.pth"):
        path.unlink()
    assert door.file_in(tmp_path) is None


ODD = {
    "a weight is missing": ({"5.conv.2.bias": None}, "lacks 5.conv.2.bias: give the files of taesd"),
    "a weight is left over": ({"15.weight": torch.zeros(3)}, "has 15.weight, which the model has no place for"),
    "another shape": ({"0.weight": torch.zeros(32, 3, 3, 3)}, r"0.weight with shape \[32, 3, 3, 3\] where"),
    "whole numbers": ({"0.bias": torch.zeros(64, dtype=torch.int32)}, "has 0.bias as torch.int32"),
    "one pool": ({"11.pool.1.bias": torch.zeros(256)}, "lacks 11.pool.0.weight and 10 more weights"),
    "another latent": (
        {"14.weight": torch.zeros(16, 64, 3, 3), "14.bias": torch.zeros(16)},
        "taesd_encoder.pth has latents of 16 channels and .*taesd_decoder.pth of 4: give an encoder and a decoder",
    ),
    "no last layer": ({"14.weight": None}, "has no convolution 14.weight, so it is not a model of this kind"),
    "an empty last layer": ({"14.weight": torch.zeros(0, 64, 3, 3)}, "has no convolution 14.weight"),
    "a flat last layer": ({"14.weight": torch.zeros(4)}, "has no convolution 14.weight"),
    "a decoder in place of the encoder": ({"0.weight": None}, "are both decoders"),
}


@pytest.mark.parametrize("kind", ODD)
def test_weights_that_cannot_be_loaded(kind, tmp_path):
    changed, sentence = ODD[kind]
    file, _ = written(tmp_path, **changed)
    assert door.recognises(file)
    with pytest.raises(UserError, match=sentence):
        door.load(file)


def test_taesana_has_other_layers(tmp_path):
    widths = {"0.weight": (32, 3), "2.weight": (64, 32), "4.conv.4.weight": (64, 64), "17.weight": (32, 64)}
    weights = {name: torch.zeros(*width, 3, 3) for name, width in widths.items()}
    torch.save({"1.weight": torch.zeros(256, 32, 3, 3)}, tmp_path / "taesana_decoder.pth")
    with pytest.raises(UserError, match=r"has no convolution 14.weight, .*: give the files of taesd, taesdxl"):
        door.load(Checkpoint(tmp_path / "taesana_encoder.pth", weights))


def test_files_that_are_alone(tmp_path):
    encoder, decoder = written(tmp_path)
    decoder.path.unlink()
    with pytest.raises(UserError, match=r"is only the encoder: put the decoder's file beside it, as taesd_decoder.pth"):
        door.load(encoder)
    renamed = Checkpoint(tmp_path / "mine.pth", decoder.weights)
    with pytest.raises(UserError, match=r"mine.pth is only the decoder: put .* beside it, as \*_encoder.pth"):
        door.load(renamed)


def test_entries_of_a_configuration_that_are_not_used(tmp_path):
    encoder, _ = written(tmp_path)
    with pytest.raises(UserError, match="has scaling_factor, but it may only have sample_size: name another file"):
        door.load(Checkpoint(**vars(encoder) | {"config": {"scaling_factor": 1.0}}))


def test_other_checkpoints_are_not_recognised(tmp_path):
    encoder, decoder = written(tmp_path)
    for file in (encoder, decoder):
        assert not door.recognises(Checkpoint(file.path, {f"vae.{n}": w for n, w in file.weights.items()}))
        assert not door.recognises(Checkpoint(file.path, {n: w for n, w in file.weights.items() if "conv" not in n}))


def test_a_folder_that_enlarges_more_than_it_reduces():
    tiny = importlib.import_module("diffusers").AutoencoderTiny
    from unlearn_ext.models.autoencoder_tiny import AutoencoderTiny

    with pytest.raises(UserError, match="reduces images 8 times and the decoder enlarges them 27 times"):
        AutoencoderTiny(tiny(upsampling_scaling_factor=3))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="taef2 and photographs are not beside the repository, in ../shared/data")
def test_the_reconstruction_of_photographs_by_taef2():
    ours = models.load("autoencoder", DATA / "taef2")
    photographs = sorted((DATA / "imagenet-256").glob("*.jpg"))[::50]
    images = torch.stack([torch.from_numpy(decode(path, 256, 3).pixels) for path in photographs]) / 127.5 - 1
    reconstructed = models.reconstruct(ours, images, Reconstruct())
    psnr = 10 * torch.log10(4 / (reconstructed - images).square().mean((1, 2, 3)))
    assert psnr.mean() > 25
