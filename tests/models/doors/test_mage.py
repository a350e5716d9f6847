"""MAGE's checkpoints, against an independent network of the original architecture; and family mage itself."""

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from originals import mage as original

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models import doors
from unlearn_ext.models.doors import mage
from unlearn_ext.models.doors.checkpoint import Checkpoint
from unlearn_ext.models.mage import MAGE
from unlearn_ext.models.mage_network import MAGEConfig
from unlearn_ext.tasks import CenterCrop, Outpaint, RandomMask, Reconstruct
from unlearn_ext.unlearning.settings import Settings

pytest.importorskip("safetensors")

TASK = CenterCrop(0.5)
SIDE = 16  # pixels; 4 tokens
LAYOUTS = {
    "small": {},
    "one level of the VQ-GAN": {"factors": (1,), "side": 5},
    "five levels of the VQ-GAN": {"factors": (1, 1, 2, 2, 4), "blocks": 2},
    "deeper": {"depth": 3, "decoder_depth": 2, "heads": 4, "decoder_heads": 1, "width": 32},
}


def saved(**options):
    """Return an original network with random weights, none of which is 0, and its checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = original.MAGE(**options).eval()
        for name, parameter in network.named_parameters():
            vqgan = name.startswith("vqgan.")
            mean = float(parameter.dim() == 1 and "norm" in name.lower())
            torch.nn.init.normal_(parameter, mean, 0.05 if vqgan and parameter.dim() == 4 else 0.3)
    config = {"num_heads": options.get("heads", 3), "decoder_num_heads": options.get("decoder_heads", 2)}
    return network, Checkpoint(Path("checkpoint-last.pth"), network.state_dict(), config=config)


def varied(count, model):
    """Return images [count, 3, S, S] in [-1, 1] with another colour in every patch, and noise."""
    colours = torch.rand(count, 3, model.module.config.side, model.module.config.side) * 2 - 1
    images = colours.repeat_interleave(model.module.config.patch_size, 2)
    images = images.repeat_interleave(model.module.config.patch_size, 3)
    return (images + 0.2 * torch.randn_like(images)).clamp(-1, 1)


def places(images, task, side):
    """Return the hidden tokens, bool [N, side²]: any of their pixels is hidden."""
    mask = task.mask(images).expand(len(images), -1, -1, -1).unfold(2, images.shape[2] // side, images.shape[2] // side)
    return mask.unfold(3, images.shape[3] // side, images.shape[3] // side).flatten(4).any(4).flatten(1)


@pytest.mark.parametrize(
    ("layout", "task"),
    [*((layout, TASK) for layout in LAYOUTS), ("small", Outpaint(0.5)), ("small", RandomMask(0.5, 4))],
    ids=str,
)
def test_latents_logits_and_pictures_are_those_of_the_original(layout, task):
    network, checkpoint = saved(**LAYOUTS[layout])
    assert mage.recognises(checkpoint)
    model = mage.load(checkpoint)
    images = varied(3, model)
    hidden = places(images, task, network.side)
    large = hidden.view(3, 1, network.side, network.side)
    large = torch.nn.functional.interpolate(large.float(), images.shape[2:]).bool()
    with torch.no_grad():
        shown = torch.stack([
            torch.where(hole, image[~hole.expand_as(image)].view(3, -1).mean(1)[:, None, None], image)
            for image, hole in zip(images, large, strict=True)
        ])  # fmt: skip
        tokens = network.vqgan.encode((shown + 1) / 2)
        assert len(tokens.unique()) > 3
        dropped = torch.zeros_like(hidden)
        theirs = network.forward_encoder(tokens, hidden, dropped)
        logits = network.forward_decoder(theirs, hidden, dropped)[:, 1:, : network.codes]
        predicted = torch.where(hidden, logits.argmax(-1), tokens)
        picture = network.vqgan.decode(predicted, network.side) * 2 - 1
        inputs = model.inputs(images, task)
        ours = model.encode(*inputs)
        kept = ~torch.nn.functional.pad(hidden, (1, 0), value=False)
        torch.testing.assert_close(ours, theirs[kept].view(3, -1, theirs.shape[2]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.module.decode(ours, inputs[1]), logits, rtol=1e-5, atol=1e-5)
        made = model.decode(ours, *inputs)
    torch.testing.assert_close(made, torch.where(large, picture, images), rtol=1e-5, atol=1e-5)
    assert not torch.isclose(made, images)[large.expand_as(images)].all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_that_the_original_computes_is_computed(layout):
    network, checkpoint = saved(**LAYOUTS[layout])
    module = mage.load(checkpoint).module
    images = (varied(2, MAGE(module)) + 1) / 2
    with torch.no_grad():
        torch.testing.assert_close(module.vqgan.encoder(images), network.vqgan.encoder(images), rtol=1e-5, atol=1e-5)
        tokens = network.vqgan.encode(images)
        assert torch.equal(module.vqgan.tokens(images), tokens)
        codes = module.vqgan.codebook[tokens].transpose(1, 2).unflatten(2, (network.side, network.side))
        torch.testing.assert_close(
            module.vqgan.images(codes), network.vqgan.decode(tokens, network.side), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_all_weights_go_back_to_where_they_were(dtype):
    _, checkpoint = saved()
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in checkpoint.weights.items()
    }
    checkpoint = replace(checkpoint, weights=weights)
    written = mage.write_back(mage.load(checkpoint), checkpoint)
    assert list(written) == list(weights)
    for name, weight in weights.items():
        assert written[name].dtype == weight.dtype
        assert torch.equal(written[name], weight), name


def test_a_changed_encoder_is_saved_loaded_and_written_back(tmp_path):
    network, checkpoint = saved()
    model = mage.load(checkpoint)
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.1)
    model.save_pretrained(tmp_path)
    loaded = models.load("mage", tmp_path)
    written = mage.write_back(loaded, checkpoint)
    changed = {name for name, weight in written.items() if not torch.equal(weight, checkpoint.weights[name])}
    assert changed == {name for name, _ in network.named_parameters() if name.startswith(("blocks.", "norm."))}
    network.load_state_dict(written)
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    again = mage.load(replace(checkpoint, weights=network.state_dict()))
    inputs = loaded.inputs(images, TASK)
    assert torch.equal(again.encode(*inputs), loaded.encode(*inputs))


def test_a_file_of_a_training_run_is_loaded(tmp_path):
    _, checkpoint = saved()
    path = tmp_path / "checkpoint-last.pth"
    content = {"model": dict(checkpoint.weights), "epoch": 3, "args": argparse.Namespace(model="mage_tiny", lr=None)}
    torch.save(content, path)
    path.with_suffix(".json").write_text(json.dumps(checkpoint.config))
    assert models.family_of(path) == "mage"
    assert doors.door_of(path).NAME == "mage"
    loaded = models.load("mage", path).module.state_dict()
    for name, weight in mage.load(checkpoint).module.state_dict().items():
        assert torch.equal(loaded[name], weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ε = ")
def test_a_sweep_gives_a_front_of_models_that_load_again(tmp_path):
    _, checkpoint = saved()
    model = mage.load(checkpoint)
    forget, retain = (torch.rand(2, 8, 3, 1, 1) * 2 - 1).expand(2, 8, 3, SIDE, SIDE).unbind()
    settings = Settings(steps=20, batch_size=8, lr=1e-3)
    front = ux.sweep(model, forget, retain, task=TASK, points=2, out=tmp_path, settings=settings)
    assert front.points[0].f1 < front.points[-1].f1 / 2
    for point in front:
        loaded = models.load("mage", tmp_path / point.name)
        assert mage.write_back(loaded, checkpoint).keys() == checkpoint.weights.keys()


@pytest.fixture
def model():
    return mage.load(saved()[1])


def test_no_hidden_pixel_is_seen(model):
    images = torch.rand(3, 3, SIDE, SIDE) * 2 - 1
    inputs = model.inputs(images, TASK)
    others = torch.where(TASK.mask(images), torch.rand_like(images), images)
    with torch.no_grad():
        latents = model.encode(*inputs)
        assert torch.equal(model.encode(others, inputs[1]), latents)
        assert torch.equal(model.decode(latents, others, inputs[1]), model.decode(latents, *inputs))
        visible = images.clone()
        visible[:, :, :4, :4] = -1
        assert not torch.equal(model.encode(visible, inputs[1]), latents)


def test_the_decoder_passes_gradients_of_the_expected_code(model):
    inputs = model.inputs(torch.rand(2, 3, SIDE, SIDE) * 2 - 1, TASK)
    model.decode(model.encode(*inputs), *inputs).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.encoder_parameters())
    trained = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.module.named_parameters() if name.startswith(("blocks.", "norm."))}


def test_tasks_and_images_that_it_cannot_take(model):
    images = torch.rand(4, 3, SIDE, SIDE)
    for task, sentence in (
        (Reconstruct(), "task reconstruct hides nothing, but family mage only fills in hidden patches"),
        (CenterCrop(1.0), "no patch of the model wholly visible"),
        (RandomMask(0.1, 7), "random-mask:F:4"),
        (torch.zeros_like, "family mage needs a task with a mask"),
    ):
        with pytest.raises(UserError, match=sentence):
            model.inputs(images, task)
    with pytest.raises(UserError, match="16x16 pixels, not 8x8"):
        model.inputs(images[..., :8, :8], TASK)


def test_published_models_are_known_by_their_width():
    for width, heads, given in ((768, 12, {}), (1024, 16, {}), (768, 6, {"num_heads": 6})):
        with torch.device("meta"):
            network = original.MAGE(
                side=16, width=width, depth=1, decoder_width=width, vqgan_width=128, factors=(1, 1, 2, 2, 4), blocks=2,
                codes=1024, code=256,
            )  # fmt: skip
        config = mage._config(Checkpoint(Path("mage.pth"), network.state_dict(), config=given))
        assert (config.image_size, config.num_heads, config.decoder_num_heads) == (256, heads, 16)
        assert (config.patch_size, config.side, config.vocab_size) == (16, 16, 2025)


WORDS = "token_emb.word_embeddings.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w, c: w.pop("norm.weight"), "lacks norm.weight: give a checkpoint of MAGE's pretraining"),
        (lambda w, c: w.pop("decoder_embed.weight"), "lacks decoder_embed.weight"),
        (lambda w, c: w.pop("vqgan.encoder.conv_in.weight"), "lacks vqgan.encoder.conv_in.weight"),
        (lambda w, c: w.pop("blocks.0.mlp.fc1.weight"), "lacks blocks.0.mlp.fc1.weight"),
        (lambda w, c: w.update({"head.weight": torch.zeros(1)}), "has head.weight, which the model has no place for"),
        (
            lambda w, c: w.update({WORDS: torch.zeros(3)}),
            r"weight with shape \[3\]; it must have 2 dimensions",
        ),
        (lambda w, c: w.update({WORDS: torch.zeros(30, 24)}), "has 30 words and .* at least 102 words for 24 codes"),
        (
            lambda w, c: w.update({"norm.bias": torch.zeros(7)}),
            r"norm.bias with shape \[7\] where the model has \[24\]",
        ),
        (lambda w, c: w.update({"norm.bias": torch.zeros(24).long()}), "norm.bias as torch.int64, not as floating-po"),
        (lambda w, c: c.clear(), "is a MAGE of width 24, and its weights do not say how many heads"),
        (lambda w, c: c.update(num_heads=7), "embed_dim of the MAGE is 24; it must be a multiple of 7"),
        (lambda w, c: c.update(decoder_num_heads="2"), "decoder_num_heads of the MAGE is '2'; it must be a positive"),
        (
            lambda w, c: w.update({"token_emb.position_embeddings.weight": torch.zeros(19, 24)}),
            r"position_embeddings.weight with shape \[19, 24\] where the model has \[17, 24\]",
        ),
    ],
)
def test_what_does_not_belong_together_is_named(change, sentence):
    _, checkpoint = saved()
    checkpoint = replace(checkpoint, weights=dict(checkpoint.weights))
    change(checkpoint.weights, checkpoint.config)
    with pytest.raises(UserError, match=sentence):
        mage.load(checkpoint)


def test_the_file_in_a_saved_folder_has_the_layout_of_a_checkpoint(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = models.load("mage", tmp_path / "model.safetensors")  # with the heads of its config.json
    for name, weight in loaded.module.state_dict().items():
        assert torch.equal(weight, model.module.state_dict()[name])
    assert loaded.module.config == model.module.config
    torch.save(loaded.module.state_dict(), tmp_path / "model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"as a pickle, model.bin"):
        models.load("mage", tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_any_precision_are_loaded_in_float32(dtype, tmp_path, model):
    model.save_pretrained(tmp_path)
    safetensors = importlib.import_module("safetensors.torch")
    path = tmp_path / "model.safetensors"
    weights = {name: weight.to(dtype) for name, weight in safetensors.load_file(path).items()}
    safetensors.save_file(weights, path)
    for name, weight in models.load("mage", tmp_path).module.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weights[name].float())


def test_what_is_no_mage_is_refused(tmp_path, model):
    with pytest.raises(UserError, match=r"family mage is unlearn_ext\.\S+MAGENetwork; this model is a Linear"):
        MAGE(torch.nn.Linear(1, 1))
    assert not mage.recognises(Checkpoint(Path("mae.pth"), {"decoder_embed.weight": torch.zeros(1)}))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changed, sentence in (
        ({"_class_name": "VQModel"}, "is a checkpoint of VQModel"),
        ({"depth": 0}, "depth of the MAGE is 0; it must be a positive whole number"),
        ({"image_size": 18}, "image_size of the MAGE is 18; it must be a multiple of 4"),
        ({"mlp_dim": 48}, r"has blocks.0.mlp.fc1.bias with shape \[96\], but its config.json asks for \[48\]"),
        ({"dropout": 0.1}, "no MAGE could be loaded from"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(UserError, match=sentence):
            models.load("mage", tmp_path)
    with pytest.raises(UserError, match="vqgan_widths of the MAGE is"):
        MAGEConfig(**{key: value for key, value in config.items() if key != "_class_name"} | {"vqgan_widths": []})
