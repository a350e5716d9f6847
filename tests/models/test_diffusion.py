"""Family diffusion, on a U-Net that runs in seconds."""

import copy
import json

import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext._utils import draws
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop, Reconstruct
from unlearn_ext.unlearning.history import History
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.trainer import Trainer

diffusers = pytest.importorskip("diffusers")
from unlearn_ext.models.diffusion import SAMPLING_STEPS, Diffusion  # noqa: E402
from unlearn_ext.models.noise_schedule import KNOWN  # noqa: E402

TASK = CenterCrop(0.5)


@pytest.fixture
def diffusion():
    return tiny.model("diffusion")


def test_latents_are_the_inputs_of_the_up_blocks_except_the_first_convolution_with_equal_weights(diffusion, images):
    inputs = diffusion.inputs(images[0][:4], TASK)
    latents = diffusion.encode(*inputs)
    given = []
    for block in diffusion.module.up_blocks:
        block.register_forward_pre_hook(lambda _, args: given.extend(args[1]))
    diffusion.module.mid_block.register_forward_hook(lambda _, __, output: given.append(output))
    diffusion.module(diffusion.seen(*inputs), inputs[2])
    assert len(given) == 5
    first = diffusion.module.conv_in(diffusion.seen(*inputs))
    given = [feature for feature in given if not (feature.shape == first.shape and torch.equal(feature, first))]
    assert len(given) == 4
    assert latents.shape == (4, sum(feature[0].numel() for feature in given))
    mean = sum(feature.square().mean() for feature in given) / len(given)
    torch.testing.assert_close(latents.square().mean(), mean)
    assert torch.equal(latents, diffusion.encode(*diffusion.inputs(images[0][:4], TASK)))  # same draws in every call


def test_there_is_noise_on_what_is_hidden_and_the_rest_is_as_it_is(diffusion, images):
    given, noise, timesteps, hole = diffusion.inputs(images[0], TASK)
    assert torch.equal(hole, TASK.mask(images[0]).expand(48, 1, 8, 8))
    assert timesteps.dtype == torch.int64
    assert len(set(timesteps.tolist())) > 10
    corrupted, noisy = diffusion.seen(given, noise, timesteps, hole).split(1, 1)
    assert torch.equal(corrupted, TASK(images[0]))
    assert torch.equal(noisy.masked_fill(hole, 0), corrupted)
    assert torch.equal(noisy[hole], diffusion.scheduler.add_noise(images[0], noise, timesteps)[hole])


BLOCKS = {
    "as usual": {},
    "centred input": {"center_input_sample": True},
    "no middle block": {"mid_block_type": None},
    "centred input, no middle block": {"center_input_sample": True, "mid_block_type": None},
    "no attention in the middle": {"add_attention": False},
    "one block": {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
    "three blocks": {
        "block_out_channels": (8, 8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D",) * 3, "layers_per_block": 2,
    },
    "attention": {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
    "residual sampling": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "scale and shift": {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "resnet_time_scale_shift": "scale_shift",
    },
    "K blocks": {
        "down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2,
        "block_out_channels": (32, 32),
    },
    "learned timesteps": {"time_embedding_type": "learned", "num_train_timesteps": 100},
    "other embedding of timesteps": {"flip_sin_to_cos": False, "freq_shift": 1, "time_embedding_dim": 12},
    "dropout": {"dropout": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("blocks", BLOCKS)
def test_latents_are_what_the_down_and_middle_blocks_compute(blocks, images):
    diffusion = tiny.wrapped("diffusion", **BLOCKS[blocks])
    inputs = diffusion.inputs(images[0][:4], TASK)
    unet, computed = diffusion.module, []
    for block in unet.down_blocks:
        block.register_forward_hook(lambda _, __, output: computed.extend(output[1]))
    if unet.mid_block is not None:
        unet.mid_block.register_forward_hook(lambda _, __, output: computed.append(output))
    unet(diffusion.seen(*inputs), inputs[2])
    theirs, computed[:] = list(computed), []
    latents = diffusion.encode(*inputs)
    parts = latents.split([feature[0].numel() for feature in theirs], 1)
    for part, feature in zip(parts, theirs, strict=True):
        scale = (latents.shape[1] / (len(theirs) * part.shape[1])) ** 0.5
        assert torch.equal(part, feature.flatten(1) * scale)
    trained = {id(parameter) for parameter in diffusion.encoder_parameters()}
    parts = [unet.down_blocks] + ([unet.mid_block] if unet.mid_block is not None else [])
    assert trained == {id(parameter) for part in parts for parameter in part.parameters()}


@pytest.mark.filterwarnings("ignore:ε = ")
@pytest.mark.parametrize("blocks", ["centred input, no middle block", "scale and shift", "one block"])
def test_u_nets_of_other_blocks_unlearn_and_load_again(blocks, images, tmp_path):
    diffusion = tiny.wrapped("diffusion", **BLOCKS[blocks])
    unlearned = ux.unlearn(diffusion, *images, task=TASK, epsilon=0.05, settings=Settings(steps=2, batch_size=8))
    unlearned.save_pretrained(tmp_path)
    loaded = models.load("diffusion", tmp_path)
    inputs = loaded.inputs(images[0][:4], TASK)
    assert torch.equal(loaded.encode(*inputs), unlearned.encode(*inputs))
    assert not torch.equal(loaded.encode(*inputs), diffusion.encode(*inputs))


SKIP = {"block_out_channels": (32, 32), "norm_num_groups": 8}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_class_embeds": 10}, "conditioned on classes"),
        ({"class_embed_type": "timestep"}, "conditioned on classes"),
        ({"class_embed_type": "identity"}, "conditioned on classes"),
        ({"class_embed_type": "timestep", "num_class_embeds": 3}, "conditioned on classes"),
        ({"time_embedding_type": "fourier"}, "takes the logarithm of a noise level"),
        ({"time_embedding_type": "fourier", "mid_block_type": None}, "takes the logarithm of a noise level"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 99}, "embeddings of 99 timesteps and .* has 100"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 1}, "embeddings of 1 timesteps and .* has 100"),
        (SKIP | {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}, "skip block"),
        (SKIP | {"down_block_types": ("AttnSkipDownBlock2D", "DownBlock2D")}, "skip blocks"),
        (SKIP | {"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "skip blocks"),
    ],
)
def test_u_nets_that_need_something_else_are_refused_at_load_time(options, sentence, tmp_path):
    tiny.unet(**options).save_pretrained(tmp_path)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100)
    scheduler.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=sentence):
        models.load("diffusion", tmp_path)
    with pytest.raises(UserError, match=sentence):
        Diffusion(tiny.unet(**options), scheduler)


@pytest.fixture
def beside(diffusion, tmp_path):
    """Return a function that saves the tiny U-Net with a scheduler (or its configuration) and loads both."""

    def load(scheduler):
        diffusion.save_pretrained(tmp_path)
        if isinstance(scheduler, dict):
            (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
        else:
            scheduler.save_pretrained(tmp_path)
        return models.load("diffusion", tmp_path)

    return load


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy")
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(
    "betas",
    [{}, {"beta_schedule": "scaled_linear", "beta_end": 0.1}, {"trained_betas": [0.01 * n for n in range(1, 61)]}],
)
def test_a_scheduler_with_the_noise_of_ddpm_is_read_as_what_it_is(name, betas, beside, images, tmp_path):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    options = {"num_train_timesteps": 60, "beta_start": 0.001, "beta_end": 0.05} | betas
    scheduler = getattr(diffusers, name)(**options)
    loaded = beside(scheduler)
    given, noise, timesteps, hole = loaded.inputs(images[0], TASK)
    assert len(set(timesteps.tolist())) > 10
    _, noisy = loaded.seen(given, noise, timesteps, hole).split(1, 1)
    assert torch.equal(noisy[hole], diffusers.DDPMScheduler(**options).add_noise(given, noise, timesteps)[hole])
    assert loaded.decode(None, given[:2], noise, timesteps, hole[:2]).isfinite().all()
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "scheduler_config.json").read_text())
    assert again == json.loads((tmp_path / "scheduler_config.json").read_text())
    assert again["_class_name"] == name


def test_what_a_configuration_leaves_out_is_the_default_of_its_own_class(beside):
    heun = beside({"_class_name": "HeunDiscreteScheduler", "num_train_timesteps": 50})
    assert heun.noise_schedule.betas[0] == pytest.approx(0.00085)
    assert heun.noise_schedule.betas[-1] == pytest.approx(0.012)
    ddim = beside({"_class_name": "DDIMScheduler"})
    assert len(ddim.noise_schedule.betas) == 1000
    assert ddim.scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    "name", sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and name not in KNOWN)
)
def test_a_scheduler_of_another_kind_is_refused_at_load_time(name, beside):
    with pytest.raises(UserError, match=rf"is a {name}, but only those .* are supported: DDPMScheduler, .*SASolver"):
        beside({"_class_name": name})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, r"names no class: write into it .* \"_class_name\": \"DDPMScheduler\""),
        ({"num_train_timesteps": 100, "beta_start": 0.1}, "names no class"),
        ({"_class_name": None}, "names no class"),
        ({"_class_name": "MyScheduler"}, "is a MyScheduler, but only those with DDPM"),
        ({"_class_name": ["DDPMScheduler"]}, r"is a \['DDPMScheduler'\], but"),
        ({"_class_name": "DDPMPipeline"}, "is a DDPMPipeline, but"),
    ],
)
def test_a_configuration_that_names_no_known_class_is_refused(config, sentence, beside):
    with pytest.raises(UserError, match=sentence):
        beside(config)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("DDPMScheduler", {"prediction_type": "noise"}, "predicts noise according to its scheduler; known are epsilon"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "predicts flow_prediction"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas or continuous timesteps"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "use_flow_sigmas or continuous timesteps"),
        ("DDPMScheduler", {"thresholding": True}, "set thresholding to false"),
        ("DDPMScheduler", {"trained_betas": [0.1] * 10}, "has 10 betas from 0.1 to 0.1 for 1000 timesteps"),
        ("DDIMScheduler", {"trained_betas": [0.1] * 3, "num_train_timesteps": 2}, "has 3 betas .* for 2 timesteps"),
        ("PNDMScheduler", {"beta_start": 0.0}, "betas from 0 to .* above 0 and at most 1"),
        ("DDPMScheduler", {"beta_end": 1.5}, "betas from 0.0001 to 1.5"),
        ("DDPMScheduler", {"beta_start": -0.1}, "betas from -0.1 to"),
        ("DDPMScheduler", {"beta_end": float("nan")}, "betas from nan to nan"),
        ("DDPMScheduler", {"beta_end": 0.9}, "leave nothing of the image before the last timestep"),
        (
            "DDPMScheduler",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "nothing of the image is le",
        ),
        (
            "DDIMScheduler",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace"},
            "nothing of the image is le",
        ),
        ("DDIMScheduler", {"timestep_spacing": "random"}, "timestep_spacing is random; known are leading"),
    ],
)
def test_a_schedule_that_cannot_be_the_models_is_refused_at_load_time(name, options, sentence, beside):
    with pytest.raises(UserError, match=sentence):
        beside(getattr(diffusers, name)(**options))


def know(model, truth):
    """Make a U-Net predict the truth exactly; return a list to which each pass appends the noise in its input."""
    kept, found = model.noise_schedule.alphas_cumprod, []

    def predict(_, args, output):
        seen, timestep = args
        left, noise = kept[timestep].sqrt(), (1 - kept[timestep]).sqrt()
        noisy = seen[:, seen.shape[1] // 2 :]
        epsilon = (noisy - left * truth) / noise
        found.append(epsilon)
        known = {"epsilon": epsilon, "sample": truth, "v_prediction": left * epsilon - noise * truth}
        output.sample = known[model.scheduler.config.prediction_type]
        return output

    model.module.register_forward_hook(predict)
    return found


def ddpm(**options):
    return diffusers.DDPMScheduler(**{"num_train_timesteps": 100} | options)


ZERO_SNR = {"rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    "scheduler",
    [
        *(ddpm(num_train_timesteps=steps) for steps in (1, 2, 10, 24, 25, 26, 49, 999, 1000)),
        *(
            ddpm(num_train_timesteps=steps, timestep_spacing=spacing)
            for steps in (7, 49, 110)
            for spacing in ("linspace", "trailing")
        ),
        ddpm(num_train_timesteps=10, steps_offset=1),
        ddpm(steps_offset=3),
        ddpm(prediction_type="v_prediction"),
        ddpm(prediction_type="sample", num_train_timesteps=30),
        ddpm(prediction_type="v_prediction", timestep_spacing="trailing", **ZERO_SNR),
        ddpm(prediction_type="sample", timestep_spacing="linspace", **ZERO_SNR),
        ddpm(**ZERO_SNR),
        *(ddpm(beta_schedule=betas) for betas in ("squaredcos_cap_v2", "sigmoid", "laplace", "scaled_linear")),
        ddpm(trained_betas=[0.02] * 100),
        ddpm(clip_sample=False),
        diffusers.DDIMScheduler(num_train_timesteps=60, set_alpha_to_one=False),
        diffusers.PNDMScheduler(num_train_timesteps=60, prediction_type="v_prediction"),
        diffusers.EulerDiscreteScheduler(num_train_timesteps=60),
        diffusers.DPMSolverSinglestepScheduler(num_train_timesteps=60, prediction_type="sample"),
    ],
    ids=lambda scheduler: f"{type(scheduler).__name__}-{len(scheduler.betas)}",
)
def test_sampling_ends_at_the_image_and_keeps_to_one_noise_where_the_prediction_is_exact(scheduler, images):
    diffusion = Diffusion(tiny.unet(), scheduler)
    truth = images[0][:2]
    inputs = diffusion.inputs(truth, TASK)
    found = know(diffusion, truth)
    with torch.no_grad():
        sampled = diffusion.decode(None, *inputs)
    torch.testing.assert_close(sampled, truth, rtol=0, atol=1e-4)
    assert len(found) <= SAMPLING_STEPS
    assert len(found) >= min(SAMPLING_STEPS, len(scheduler.betas)) / 2
    hole = inputs[3]
    # DDIM keeps one noise if every step goes to the noise level of the next timestep. The last step is left out: its
    # noise is so small that rounding is as large.
    for epsilon in found[:-1]:
        torch.testing.assert_close(epsilon[hole], found[0][hole], rtol=0, atol=5e-3)


def test_sampling_is_that_of_the_library_where_its_timesteps_divide(images):
    for options in ({}, {"prediction_type": "v_prediction"}, {"timestep_spacing": "trailing"}, {"steps_offset": 1}):
        diffusion = Diffusion(tiny.unet(), ddpm(**options))
        given, *_, hole = inputs = diffusion.inputs(images[0][:2], TASK)
        theirs = diffusers.DDIMScheduler.from_config(diffusion.scheduler.config)
        theirs.set_timesteps(SAMPLING_STEPS)
        corrupted = given.masked_fill(hole, 0)
        image = theirs.add_noise(corrupted, draws.normal(corrupted, "sample"), theirs.timesteps[:1])
        image = torch.where(hole, image, corrupted)
        with torch.no_grad():
            for timestep in theirs.timesteps:
                predicted = diffusion.module(torch.cat([corrupted, image], 1), timestep).sample
                image = torch.where(hole, theirs.step(predicted, timestep, image).prev_sample, corrupted)
            assert torch.equal(diffusion.decode(None, *inputs), image)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_learned_variance_is_no_part_of_the_picture(variance, channels):
    both = tiny.unet(in_channels=2 * channels, out_channels=2 * channels)
    alone = tiny.unet(in_channels=2 * channels, out_channels=channels)
    weights = both.state_dict()
    for name in ("conv_out.weight", "conv_out.bias"):
        weights[name] = weights[name][:channels]
    alone.load_state_dict(weights)
    learned, plain = Diffusion(both, ddpm(variance_type=variance)), Diffusion(alone, ddpm())
    inputs = learned.inputs(torch.rand(2, channels, 8, 8) * 2 - 1, TASK)
    with torch.no_grad():
        assert learned.channels == channels
        torch.testing.assert_close(learned.decode(None, *inputs), plain.decode(None, *inputs))
        assert torch.equal(learned.encode(*inputs), plain.encode(*inputs))


def test_a_configuration_of_before_prediction_types_says_that_images_are_predicted(beside, tmp_path):
    loaded = beside({"_class_name": "DDPMScheduler", "num_train_timesteps": 50, "predict_epsilon": False})
    assert loaded.scheduler.config.prediction_type == "sample"
    loaded.save_pretrained(tmp_path / "again")
    assert models.load("diffusion", tmp_path / "again").scheduler.config.prediction_type == "sample"
    for old in ({"predict_epsilon": True}, {}):
        loaded = beside({"_class_name": "DDPMScheduler", "num_train_timesteps": 50} | old)
        assert loaded.scheduler.config.prediction_type == "epsilon"


def test_noise_in_the_place_of_an_image_leaves_nothing_of_it(diffusion, images):
    _, *seen = diffusion.inputs(images[0], TASK)
    noise = draws.normal(images[0], "any")
    _, *others = diffusion.inputs(images[1], TASK)
    others[:2] = seen[:2]  # use the noise and timesteps of the first images
    assert torch.equal(diffusion.encode(noise, *seen), diffusion.encode(noise, *others))


def test_a_task_that_hides_nothing_is_refused(diffusion, images):
    with pytest.raises(UserError, match="task reconstruct hides nothing, but family diffusion only fills in"):
        diffusion.inputs(images[0], Reconstruct())
    with pytest.raises(UserError, match="needs a task with a mask"):
        diffusion.inputs(images[0], lambda pictures: pictures)


def test_only_the_down_and_middle_blocks_are_trained_and_saved_changed(diffusion, images, tmp_path):
    before = copy.deepcopy(diffusion.module.state_dict())
    settings = Settings(steps=60, batch_size=16, lr=3e-3)
    objectives = Objectives.freeze(diffusion, *images, TASK, settings=settings)
    start = objectives.evaluate_f1(diffusion.encode)
    f1, f2 = Trainer(diffusion, objectives, History()).approach(start / 2)
    assert f1 == pytest.approx(start / 2, abs=start / 20)
    assert 0 < f2 < start
    diffusion.save_pretrained(tmp_path)
    loaded = models.load("diffusion", tmp_path)
    changed = {k for k, v in loaded.module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(key.startswith(("down_blocks", "mid_block")) for key in changed)
    assert diffusers.UNet2DModel.from_pretrained(tmp_path).config.in_channels == 2


def test_samples_are_images_and_the_same_every_time(diffusion, images):
    inputs = diffusion.inputs(images[0][:2], TASK)
    with torch.no_grad():
        first, second = (diffusion.decode(diffusion.encode(*inputs), *inputs) for _ in range(2))
    assert first.shape == (2, 1, 8, 8)
    assert torch.equal(first, second)
    hole = inputs[3]
    other = images[0][:2].masked_fill(hole, 0.5)
    with torch.no_grad():
        assert torch.equal(diffusion.decode(None, other, *inputs[1:]), first), "the hidden part was looked at"
    assert torch.equal(first[~hole], images[0][:2][~hole])
    assert not torch.isclose(first[hole], images[0][:2][hole]).any()


def test_what_is_no_such_model_is_refused(diffusion, tmp_path):
    with pytest.raises(UserError, match="needs 2 input channels, not 1"):
        Diffusion(tiny.unet(in_channels=1), diffusers.DDPMScheduler())
    with pytest.raises(UserError, match="needs 4 input channels, not 2, unless its scheduler has a learned variance"):
        Diffusion(tiny.unet(out_channels=2), diffusers.DDPMScheduler())
    with pytest.raises(UserError, match=r"a learned variance .* half of the U-Net's 1 output channels: .*, not 2"):
        Diffusion(tiny.unet(), diffusers.DDPMScheduler(variance_type="learned"))
    with pytest.raises(UserError, match="there is no folder"):
        models.load("diffusion", tmp_path / "nothing")
    diffusion.module.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no scheduler beside the U-Net"):
        models.load("diffusion", tmp_path)
