"""Palette's checkpoints, against an independent network of the original architecture."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from originals import palette as original

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models import doors
from unlearn_ext.models.doors import palette
from unlearn_ext.models.doors.checkpoint import Checkpoint
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.settings import Settings

pytest.importorskip("diffusers")

TASK = CenterCrop(0.5)
SMALL = {
    "image_size": 16, "in_channel": 6, "out_channel": 3, "inner_channel": 32, "channel_mults": [1, 2],
    "attn_res": [2], "num_head_channels": 16, "res_blocks": 1, "dropout": 0.2,
}  # fmt: skip
TRAIN = {"schedule": "linear", "n_timestep": 200, "linear_start": 1e-6, "linear_end": 0.1}
LAYOUTS = {
    "small": {},
    "as published, but narrow": {"channel_mults": [1, 2, 4, 8], "res_blocks": 2, "attn_res": [16]},
    "attention in all levels": {"attn_res": [1, 2]},
    "one head": {"num_head_channels": -1, "attn_res": [1]},
    "four heads": {"num_head_channels": -1, "num_heads": 4, "attn_res": []},
    "query, key and value first": {"use_new_attention_order": True},
    "convolutions that resample": {"resblock_updown": False, "attn_res": [1]},
    "embeddings that are added": {"use_scale_shift_norm": False},
}


def saved(saved_schedule=True, **options):
    """Return an original network with random weights, none of which is 0, and its checkpoint."""
    unet = SMALL | options
    betas = torch.linspace(TRAIN["linear_start"], TRAIN["linear_end"], TRAIN["n_timestep"], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = original.Network(unet, betas if saved_schedule else None).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1) / 4, std=0.1)
    arguments = {"module_name": "guided_diffusion", "unet": unet, "beta_schedule": {"train": dict(TRAIN), "test": {}}}
    model = {"name": ["models.model", "Palette"], "args": {"task": "inpainting"}}
    config = {
        "model": {"which_model": model, "which_networks": [{"name": ["models.network", "Network"], "args": arguments}]}
    }
    return network, Checkpoint(Path("runs/5_Network.pth"), network.state_dict(), config=config)


def unet_of(checkpoint):
    return checkpoint.config["model"]["which_networks"][0]["args"]["unet"]


def schedule_of(checkpoint):
    return checkpoint.config["model"]["which_networks"][0]["args"]["beta_schedule"]


@pytest.fixture
def checkpoint():
    """A checkpoint whose configuration may be changed."""
    _, checkpoint = saved()
    return replace(checkpoint, weights=dict(checkpoint.weights), config=copy.deepcopy(checkpoint.config))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_those_of_the_original_at_every_noise_level(layout):
    network, checkpoint = saved(**LAYOUTS[layout])
    assert palette.recognises(checkpoint)
    model = palette.load(checkpoint)
    side = 2 ** len(unet_of(checkpoint)["channel_mults"]) * 2
    seen = torch.randn(3, 6, side, side)
    with torch.no_grad():
        for timestep in (0, 1, 100, 199):
            gammas = network.gammas[[timestep] * 3]
            level = model.level(torch.full((3,), timestep))
            torch.testing.assert_close(level, gammas, rtol=1e-4, atol=1e-6)
            theirs = network.denoise_fn(seen, gammas)
            assert theirs.std() > 0.1
            torch.testing.assert_close(model.module(seen, gammas).sample, theirs, rtol=1e-5, atol=1e-5)
        mixed = torch.tensor([1.0, 0.3, 1e-4])
        torch.testing.assert_close(
            model.module(seen, mixed).sample, network.denoise_fn(seen, mixed), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_all_weights_go_back_to_where_they_were(layout, dtype):
    _, checkpoint = saved(**LAYOUTS[layout])
    checkpoint = replace(checkpoint, weights={name: value.to(dtype) for name, value in checkpoint.weights.items()})
    written = palette.write_back(palette.load(checkpoint), checkpoint)
    assert list(written) == list(checkpoint.weights)
    for name, weight in checkpoint.weights.items():
        assert written[name].dtype == dtype
        assert torch.equal(written[name], weight), name


def test_the_u_net_sees_what_it_saw_in_training():
    _, checkpoint = saved(saved_schedule=False)  # as in files of averaged weights
    model = palette.load(checkpoint)
    images = torch.rand(40, 3, 16, 16) * 2 - 1
    given, noise, timesteps, hole = inputs = model.inputs(images, TASK)
    condition, noisy = model.seen(*inputs).split(3, 1)
    hole = hole.expand_as(images)
    assert torch.equal(condition[~hole], images[~hole])
    assert torch.equal(noisy[~hole], images[~hole])
    assert condition[hole].mean().abs() < 0.05
    assert condition[hole].std() == pytest.approx(1, abs=0.05)
    left = model.level(timesteps).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        noisy[hole], (left.sqrt() * images + (1 - left).sqrt() * noise[:, :3])[hole], rtol=1e-5, atol=1e-5
    )
    assert abs(torch.corrcoef(torch.stack([condition[hole], noise[:, :3][hole]]))[0, 1]) < 0.05
    assert torch.equal(given, images)
    again = model.inputs(images, TASK)
    assert all(map(torch.equal, inputs, again))


def test_encoder_and_sampler_pass_the_noise_level():
    network, checkpoint = saved()
    model = palette.load(checkpoint)
    inputs = model.inputs(torch.rand(2, 3, 16, 16) * 2 - 1, TASK)
    levels, embedded = [], []
    model.module.time_proj.register_forward_hook(lambda _, args, output: levels.append(args[0]))
    model.module.time_embedding.register_forward_hook(lambda _, args, output: embedded.append(output))
    with torch.no_grad():
        model.encode(*inputs)
        expected = network.denoise_fn.cond_embed(original.embedding(network.gammas[inputs[2]], 32))
        torch.testing.assert_close(embedded[0], expected, rtol=1e-5, atol=1e-5)
        picture = model.decode(None, *inputs)
    assert torch.equal(levels[0], model.level(inputs[2]))
    sampled = torch.stack([level[0] for level in levels[1:]])
    assert len(sampled) == 25
    assert (sampled.diff() > 0).all()
    assert sampled[0] < 0.01
    assert sampled[-1] > 0.99
    with torch.no_grad():
        assert torch.equal(model.decode(None, *model.inputs(inputs[0], TASK)), picture)


def test_a_changed_encoder_is_saved_loaded_and_written_back(tmp_path):
    network, checkpoint = saved()
    model = palette.load(checkpoint)
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.1)
    model.save_pretrained(tmp_path)
    loaded = models.load("diffusion", tmp_path)
    assert loaded.palette
    inputs = loaded.inputs(torch.rand(2, 3, 16, 16) * 2 - 1, TASK)
    assert torch.equal(loaded.encode(*inputs), model.encode(*inputs))
    written = palette.write_back(loaded, checkpoint)
    changed = {name for name, weight in written.items() if not torch.equal(weight, checkpoint.weights[name])}
    names = {name for name, _ in network.named_parameters() if name.split(".")[1] in ("input_blocks", "middle_block")}
    assert changed == names - {"denoise_fn.input_blocks.0.0.weight", "denoise_fn.input_blocks.0.0.bias"}
    network.load_state_dict(written)
    seen = loaded.seen(*inputs)
    with torch.no_grad():
        ours = loaded.module(seen, loaded.level(inputs[2])).sample
        torch.testing.assert_close(network.denoise_fn(seen, network.gammas[inputs[2]]), ours, rtol=1e-5, atol=1e-5)


def test_a_file_is_loaded_with_the_json_of_its_training_run(tmp_path):
    _, checkpoint = saved()
    path = tmp_path / "checkpoint" / "5_Network.pth"
    path.parent.mkdir()
    torch.save(dict(checkpoint.weights), path)
    text = json.dumps(checkpoint.config, indent=1).replace('"model": {', '"model": { // the "network"')
    (tmp_path / "config.json").write_text(f"/* {{ */ {text}")
    assert models.family_of(path) == "diffusion"
    assert doors.door_of(path).NAME == "palette"
    loaded = models.load("diffusion", path).module.state_dict()
    for name, weight in palette.load(checkpoint).module.state_dict().items():
        assert torch.equal(loaded[name], weight)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="give the JSON file that the model was trained with as --model-config FILE"):
        models.load("diffusion", path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ε = ")
def test_a_sweep_gives_a_front_of_models_that_load_again(tmp_path):
    _, checkpoint = saved()
    model = palette.load(checkpoint)
    forget, retain = (torch.rand(2, 4, 3, 1, 1) * 2 - 1).expand(2, 4, 3, 16, 16).unbind()
    settings = Settings(steps=24, batch_size=4)
    front = ux.sweep(model, forget, retain, task=TASK, points=2, out=tmp_path, settings=settings)
    assert front.points[0].f1 < front.points[-1].f1 / 2
    for point in front:
        loaded = models.load("diffusion", tmp_path / point.name)
        assert loaded.palette
        assert palette.write_back(loaded, checkpoint).keys() == checkpoint.weights.keys()


def test_the_loaded_model_shares_no_memory_with_the_checkpoint(checkpoint):
    model = palette.load(checkpoint)
    before = {name: weight.clone() for name, weight in checkpoint.weights.items()}
    for parameter in model.module.parameters():
        parameter.data.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in checkpoint.weights.items())


FIRST = "denoise_fn.input_blocks.1.0.in_layers.2.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.weights.pop(FIRST), rf"lacks {FIRST}: give the JSON file"),
        (lambda c: c.weights.update(extra=torch.zeros(1)), "has extra, which the model has no place for"),
        (
            lambda c: c.weights.update({FIRST: torch.zeros(1, 2)}),
            rf"{FIRST} with shape \[1, 2\] where the model has \[32, 32, 3, 3\]",
        ),
        (lambda c: c.config.clear(), "does not say how its attention and its noise are made: give the JSON file"),
        (lambda c: c.config.update(model=[]), "lacks model, which_networks, args with unet and beta_schedule"),
        (lambda c: c.config["model"].update(which_networks=[]), "lacks model, which_networks"),
        (
            lambda c: c.config["model"]["which_model"]["args"].update(task="colorization"),
            "was trained for colorization, but family diffusion only fills in hidden pixels: give a model for inpaint",
        ),
        (lambda c: unet_of(c).update(attention=1), "has an unknown entry attention"),
        (lambda c: unet_of(c).pop("res_blocks"), r"is invalid \(.*res_blocks"),
        (lambda c: unet_of(c).update(attn_res=2), "is invalid"),
        (lambda c: unet_of(c).update(channel_mults=None), "is invalid"),
        (lambda c: unet_of(c).update(channel_mults=[]), "has 0 input blocks of 32 channels, and the weights have 4"),
        (lambda c: unet_of(c).update(res_blocks=10**12), "has 2000000000002 input blocks of 32 channels"),
        (lambda c: unet_of(c).update(inner_channel=64), "4 input blocks of 64 channels, and the weights have 4 of 32"),
        (lambda c: unet_of(c).update(inner_channel="32"), "has inner_channel: '32'; it must be a whole number"),
        (lambda c: unet_of(c).update(channel_mults=[2, 2]), "begins with another channel_mults than 1"),
        (lambda c: unet_of(c).update(channel_mults=[1, 10**12]), "is invalid|with shape"),
        (lambda c: unet_of(c).update(conv_resample=False, resblock_updown=False), "resamples without weights"),
        (lambda c: unet_of(c).update(attn_res=[]), "lacks denoise_fn.output_blocks.1.1.in_layers.0"),
        (lambda c: unet_of(c).update(attn_res=[1]), r"lacks denoise_fn.input_blocks.1.1"),
        (
            lambda c: unet_of(c).update(num_head_channels=0),
            "heads of attention have 0 channels .* must be 1 to 64",
        ),
        (lambda c: unet_of(c).update(num_head_channels=-5), "heads of attention have -5 channels"),
        (lambda c: unet_of(c).update(num_head_channels=65), "heads of attention have 65 channels"),
        (lambda c: unet_of(c).update(num_head_channels=-1, num_heads=65, attn_res=[]), "of attention have 0 channels"),
        (lambda c: unet_of(c).update(num_head_channels=-1, num_heads=0, attn_res=[]), "of attention have 0 channels"),
        (lambda c: unet_of(c).update(num_heads="4"), "has num_heads: '4'; it must be a whole number"),
        (
            lambda c: unet_of(c).update(num_head_channels=48),
            r"qkv.weight with shape \[192, 64, 1\] where the model has \[144, 64, 1",
        ),
        (lambda c: unet_of(c).update(num_head_channels=-1, num_heads=2, attn_res=[1, 2]), "different numbers of chan"),
        (lambda c: unet_of(c).update(num_head_channels=-1, num_heads_upsample=2), "different numbers of channels"),
        (
            lambda c: unet_of(c).update(out_channel=6),
            r"out.2.weight with shape \[3, 32, 3, 3\] where the model has \[6",
        ),
        (lambda c: unet_of(c).update(image_size=0), "sample_size in the model's configuration is 0"),
        (lambda c: unet_of(c).update(dropout="much"), "is invalid"),
        (lambda c: schedule_of(c).pop("train"), "lacks train with schedule, n_timestep"),
        (lambda c: schedule_of(c)["train"].update(linear_end="x"), "lacks train with schedule, n_timestep"),
        (lambda c: schedule_of(c)["train"].update(schedule="cosine"), "is 'cosine' with n_timestep 200; supported are"),
        (lambda c: schedule_of(c)["train"].update(n_timestep=10**12), "with 2 to 100000 timesteps"),
        (lambda c: schedule_of(c)["train"].update(n_timestep=100), "saved with another noise schedule than train"),
        (lambda c: schedule_of(c)["train"].update(linear_end=0.2), "saved with another noise schedule than train"),
    ],
)
def test_what_does_not_belong_together_is_named(change, sentence, checkpoint):
    change(checkpoint)
    with pytest.raises(UserError, match=sentence):
        palette.load(checkpoint)


def test_the_other_u_net_of_the_original_is_refused():
    checkpoint = Checkpoint(Path("9_Network.pth"), {"denoise_fn.noise_level_mlp.1.weight": torch.zeros(1)})
    assert palette.recognises(checkpoint)
    with pytest.raises(UserError, match="has the U-Net of SR3"):
        palette.load(checkpoint)


def test_other_files_are_not_recognised():
    for name in ("denoise_fn.downs.0.0.weight", "model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight"):
        assert not palette.recognises(Checkpoint(Path("a.pth"), {name: torch.zeros(1)}))
