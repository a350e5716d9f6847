"""Family latent-diffusion, on pipelines that draw in a fraction of a second."""

import copy
import json
import shutil

import pytest
import torch
from torch.nn import functional

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext._utils import draws
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop, RandomMask, Reconstruct
from unlearn_ext.unlearning.batches import Side
from unlearn_ext.unlearning.identity import identity
from unlearn_ext.unlearning.settings import Settings

diffusers = pytest.importorskip("diffusers")
import pipelines  # noqa: E402

from unlearn_ext.models.latent_diffusion import SAMPLING_STEPS, LatentDiffusion  # noqa: E402
from unlearn_ext.models.prompts import Prompts  # noqa: E402

TASK = CenterCrop(0.5)
MAKERS = {"inpainting": pipelines.inpainting, "pix2pix": pipelines.pix2pix, "xl": pipelines.xl_inpainting}
QUICK = Settings(steps=2, batch_size=4)


@pytest.fixture(params=MAKERS)
def model(request):
    return LatentDiffusion(MAKERS[request.param](), Prompts("a red bus"))


@pytest.fixture
def inpainter():
    return LatentDiffusion(pipelines.inpainting(), Prompts("a red bus"))


@pytest.fixture
def images():
    return torch.rand(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _conditions(model, inputs):
    """Return the mask, if the U-Net takes one, and the arguments of the U-Net's forward."""
    *mask, prompts = inputs[3:5] if model._kind.takes_mask else inputs[3:4]
    named = {"encoder_hidden_states": prompts}
    if len(inputs) == 6:
        ids = torch.tensor([16.0, 16, 0, 0, 16, 16]).expand(len(prompts), -1)
        named["added_cond_kwargs"] = {"text_embeds": inputs[5], "time_ids": ids}
    return mask, named


def test_latents_are_the_inputs_of_the_up_blocks_except_the_first_convolution(model, images):
    inputs = model.inputs(images[0], TASK)
    features = model.encode(*inputs)
    given = []
    for block in model.module.up_blocks:
        block.register_forward_pre_hook(
            lambda _, args, named: given.extend(named["res_hidden_states_tuple"]), with_kwargs=True
        )
    model.module.mid_block.register_forward_hook(lambda _, __, output: given.append(output))
    _, named = _conditions(model, inputs)
    model.module(model.seen(*inputs), inputs[2], **named)
    first = model.module.conv_in(model.seen(*inputs))
    given = [feature for feature in given if not (feature.shape == first.shape and torch.equal(feature, first))]
    assert len(given) == 4
    assert features.shape == (6, sum(feature[0].numel() for feature in given))
    torch.testing.assert_close(features.square().mean(), sum(feature.square().mean() for feature in given) / len(given))
    assert features.requires_grad


def test_the_u_net_sees_what_the_pipeline_gives_it(model, images):
    """The mask and the corrupted image's latent are those of the pipeline's own call with pictures and a text."""
    vae, taken = model.pipeline.vae, []
    # The pipeline draws from the VAE's distribution; here its mean is compared.
    vae.quant_conv.bias.data[4:] = -50
    vae.quant_conv.weight.data[4:] = 0
    model = LatentDiffusion(model.pipeline, model.prompts)
    inputs = model.inputs(images[0], TASK)
    hook = model.module.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    hole = {} if not model._kind.takes_mask else {"mask_image": TASK.mask(images[0]).expand(6, 1, 16, 16).float()}
    more = {"height": 16, "width": 16, "strength": 1.0} if hole else {}
    corrupted = TASK(images[0]) / 2 + 0.5
    model.pipeline(["a red bus"] * 6, image=corrupted, num_inference_steps=1, output_type="pt", **hole, **more)
    hook.remove()
    repeats = len(taken[0]) // 6  # for guidance
    assert repeats == (2 if hole else 3)
    with_text = taken[0].chunk(repeats)[-1 if hole else 0]
    torch.testing.assert_close(model.seen(*inputs)[:, 4:], with_text[:, 4:], atol=1e-5, rtol=1e-5)


def test_the_noisy_latent_is_that_of_the_whole_image(model, images):
    latents, noise, timesteps, *_ = inputs = model.inputs(images[0], TASK)
    factor = model.pipeline.vae.config.scaling_factor
    whole = model.pipeline.vae.encode(images[0]).latent_dist.mode() * factor
    torch.testing.assert_close(latents[:, :4], whole)
    torch.testing.assert_close(
        model.seen(*inputs)[:, :4], model.pipeline.scheduler.add_noise(whole, noise, timesteps), atol=1e-5, rtol=1e-5
    )
    assert len(set(timesteps.tolist())) > 3


def test_the_mask_is_at_the_latents_resolution(images):
    model, task = LatentDiffusion(pipelines.inpainting()), RandomMask(0.5, 4)
    inputs = model.inputs(images[0], task)
    coarse = functional.interpolate(task.mask(images[0]).float(), size=(8, 8))
    assert torch.equal(model.seen(*inputs)[:, 4:5], coarse)


def test_inputs_depend_only_on_the_image_and_the_draw(model, images):
    whole, again = model.inputs(images[0], TASK, 3), model.inputs(images[0].flip(0), TASK, 3)
    for part, other in zip(whole, again, strict=True):
        assert torch.equal(part, other.flip(0))
    (first, noise, timesteps, *_), other = model.inputs(images[0], TASK, 3), model.inputs(images[0], TASK, 4)
    assert torch.equal(first, other[0])
    assert not torch.equal(noise, other[1])
    assert not torch.equal(timesteps, other[2])


def test_noise_replaces_both_latents_and_nothing_of_the_image_is_left(model, images):
    batches = [Side(side, model, TASK, noises=2).batch(torch.arange(6)) for side in images]
    for batch in batches:
        assert [noise.shape for noise in batch.noise] == [(6, 8, 8, 8)] * 2
    (noise, _), rest = batches[0].noise, batches[0].inputs[1:]
    other = model.inputs(images[1], TASK)
    features = model.encode(noise, *rest)
    drawn = (rest[0], rest[1], *other[3:])  # the mask and the prompt of other images, and the same random numbers
    assert torch.equal(features, model.encode(noise, *drawn))


def test_pix2pix_edits_the_corrupted_image_and_takes_no_mask(images):
    model = LatentDiffusion(pipelines.pix2pix())
    latents, _, _, prompts = model.inputs(images[0], TASK)
    assert prompts.shape == (6, 77, 8)
    of_corrupted = model.pipeline.vae.encode(TASK(images[0])).latent_dist.mode()
    torch.testing.assert_close(model.seen(latents, *model.inputs(images[0], TASK)[1:])[:, 4:], of_corrupted)
    whole = model.inputs(images[0], Reconstruct())[0]
    assert torch.equal(whole[:, :4], whole[:, 4:])
    assert torch.equal(model.inputs(images[0], lambda images: images.flip(-1))[1], model.inputs(images[0], TASK)[1])


def test_pictures_are_those_of_the_untouched_pipeline(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    pipeline = type(model.pipeline).from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    made = models.reconstruct(model, images[0][:2], TASK)
    condition = model._condition(model.inputs(images[0][:2], TASK)[0])
    named = {"image": condition}
    if model._kind.takes_mask:
        hole = TASK.mask(images[0]).float().expand(2, 1, 16, 16)
        named = {
            "image": TASK(images[0][:2]) / 2 + 0.5, "mask_image": hole, "masked_image_latents": condition,
            "height": 16, "width": 16, "strength": 1.0,
        }  # fmt: skip
    drawn = pipeline(
        ["a red bus"] * 2, num_inference_steps=SAMPLING_STEPS, latents=draws.normal(condition, "sample"),
        output_type="pt", **named,
    ).images  # fmt: skip
    torch.testing.assert_close(made, drawn * 2 - 1, atol=1e-5, rtol=1e-5)


def test_pictures_do_not_depend_on_how_many_are_drawn_together(inpainter, images, monkeypatch):
    together = models.reconstruct(inpainter, images[0], TASK)
    monkeypatch.setattr("unlearn_ext.models.latent_diffusion._AT_ONCE", 2)
    torch.testing.assert_close(models.reconstruct(inpainter, images[0], TASK), together, atol=1e-5, rtol=1e-5)
    before = inpainter.pipeline.scheduler.config
    assert not hasattr(inpainter.pipeline.scheduler, "ets") or not inpainter.pipeline.scheduler.ets
    assert inpainter.pipeline.scheduler.config == before


def test_a_prompt_changes_what_e_computes(model, images):
    inputs = model.inputs(images[0], TASK)
    model.prompts = Prompts("a blue teapot")
    other = model.inputs(images[0], TASK)
    assert all(torch.equal(a, b) for a, b in zip(inputs[:3], other[:3], strict=True))
    assert not torch.allclose(model.encode(*inputs), model.encode(*other))


def test_images_have_prompts_of_their_own(inpainter, images):
    pixels = images[0].add(1).mul(127.5).round().to(torch.uint8)
    from unlearn_ext.data.sets import digests

    texts = [f"picture {number}" for number in range(6)]
    inpainter.prompts = Prompts("", dict(zip(digests(pixels), texts, strict=True)))
    stored = pixels.float() / 127.5 - 1
    embeddings = inpainter.inputs(stored.flip(0), TASK)[-1].flip(0)
    for embedding, text in zip(embeddings, texts, strict=True):
        assert torch.equal(embedding, inpainter.pipeline.encode_prompt(text, "cpu", 1, False)[0][0])
    with pytest.raises(UserError, match="an image has no prompt, although others have"):
        inpainter.inputs(stored.flip(-1), TASK)


def test_the_vae_and_the_text_encoder_run_once_for_each_image_and_prompt(inpainter, images):
    calls = {"images": 0, "texts": 0}
    vae, text = inpainter.pipeline.vae, inpainter.pipeline.text_encoder
    vae.encoder.register_forward_hook(lambda *_: calls.update(images=calls["images"] + 1))
    text.register_forward_hook(lambda *_: calls.update(texts=calls["texts"] + 1))
    for draw in range(3):
        copy.deepcopy(inpainter).inputs(images[0], TASK, draw)
    assert calls == {"images": 12, "texts": 1}


def test_beyond_the_limit_outputs_are_computed_again(inpainter, images, monkeypatch):
    monkeypatch.setattr("unlearn_ext.models.frozen_outputs.LIMIT", 3 * 4 * 64 * 4)  # three latents
    latents = inpainter.inputs(images[0], TASK)[0]
    assert torch.equal(latents, inpainter.inputs(images[0], TASK)[0])
    assert len(inpainter._space._latents._kept) == 3


def test_a_copy_has_a_u_net_of_its_own_and_shares_the_rest(model):
    other = copy.deepcopy(model)
    assert other.pipeline.unet is other.module
    assert model.pipeline.unet is model.module
    assert other.module is not model.module
    assert other.pipeline.vae is model.pipeline.vae
    with torch.no_grad():
        other.encoder_parameters()[0].zero_()
    assert model.encoder_parameters()[0].any()


def test_only_the_encoder_changes_and_the_pipeline_loads_in_its_own_class(model, images, tmp_path):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    unlearned = ux.unlearn(model, *images, task=TASK, epsilon="50%", settings=QUICK)
    unlearned.save_pretrained(tmp_path)
    loaded = type(model.pipeline).from_pretrained(tmp_path)
    changed = {name for name, value in loaded.unet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("down_blocks.", "mid_block.")) for name in changed)
    for part in ("vae", "text_encoder"):
        original = getattr(model.pipeline, part).state_dict()
        assert all(torch.equal(value, original[name]) for name, value in getattr(loaded, part).state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_gradient_checkpointing_changes_no_gradient(model, images):
    inputs, gradients = model.inputs(images[0], TASK), []
    for _ in range(2):
        model.module.train()
        model.encode(*inputs).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.encoder_parameters()])
        model.module.zero_grad()
        model.enable_gradient_checkpointing()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_identity_of_a_run_names_the_frozen_parts_and_the_prompts(inpainter, images):
    def of(model):
        return identity(model, {"forget": images[0]}, TASK, None, QUICK)

    other = pipelines.inpainting()
    with torch.no_grad():
        other.vae.quant_conv.bias.add_(1)
    assert of(inpainter) == of(LatentDiffusion(pipelines.inpainting(), Prompts("a red bus")))
    assert of(inpainter) != of(LatentDiffusion(other, Prompts("a red bus")))
    assert of(inpainter) != of(LatentDiffusion(pipelines.inpainting(), Prompts("a bus")))


def test_saving_and_loading_gives_the_same_model(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = models.load_like(model, tmp_path)
    assert loaded.size == model.size == 16
    assert loaded.frozen == model.frozen
    inputs = model.inputs(images[0], TASK)
    assert all(torch.equal(a, b) for a, b in zip(inputs, loaded.inputs(images[0], TASK), strict=True))
    assert torch.equal(model.encode(*inputs), loaded.encode(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_in_float32(dtype, tmp_path):
    pipelines.inpainting().to(dtype).save_pretrained(tmp_path, variant="fp16")
    loaded = models.load("latent-diffusion", tmp_path)
    for part in (loaded.module, loaded.pipeline.vae, loaded.pipeline.text_encoder):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    for name in ("unet", "vae", "text_encoder"):
        pipeline = pipelines.inpainting()
        getattr(pipeline, name).to(dtype)
        with pytest.raises(UserError, match=r"make them float32"):
            LatentDiffusion(pipeline)


@pytest.fixture
def folder(tmp_path):
    pipelines.inpainting().save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_class_name": "FluxFillPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
         "FluxFillPipeline is a diffusion transformer: all its blocks run on the same tokens"),
        ({"_class_name": "FluxKontextPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
         "FluxKontextPipeline is a diffusion transformer: .* no down blocks and middle block that could be E"),
        ({"_class_name": "StableDiffusionPipeline"}, "supports the pipelines .*; this is a StableDiffusionPipeline"),
        ({"unet": ["diffusers", "UNet2DModel"]}, r"component unet of .* is .*; family .* needs .*UNet2DConditionModel"),
        ({"vae": ["diffusers", "AsymmetricAutoencoderKL"]}, "needs diffusers.AutoencoderKL"),
        ({"text_encoder": ["my_code", "Encoder"]}, "needs transformers.CLIPTextModel"),
    ],
)  # fmt: skip
def test_another_pipeline_is_one_sentence(folder, change, sentence):
    edited(folder / "model_index.json", **change)
    with pytest.raises(UserError, match=sentence):
        models.load("latent-diffusion", folder)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"in_channels": 4}, "must take 9 channels and return 4, .* this one takes 4 .*text-to-image"),
        ({"out_channels": 8}, "this one takes 9 and returns 8"),
        ({"num_class_embeds": 3}, "the U-Net has num_class_embeds in unet/config.json"),
        ({"time_cond_proj_dim": 8}, "the U-Net has time_cond_proj_dim .* or is distilled to few steps"),
        ({"encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj"}, "the U-Net has encoder_hid_dim_type"),
    ],
)
def test_a_u_net_that_needs_more_is_one_sentence(option, sentence):
    with pytest.raises(UserError, match=sentence):
        LatentDiffusion(pipelines.inpainting(**option))


def test_an_sdxl_u_net_in_another_pipeline_is_one_sentence():
    xl = pipelines.xl_inpainting().unet
    pipeline = pipelines.inpainting()
    pipeline.unet = xl
    with pytest.raises(UserError, match=r"must have addition_embed_type None in unet/config.json, not text_time"):
        LatentDiffusion(pipeline)


def test_another_vae_is_one_sentence():
    pipeline = pipelines.inpainting()
    pipeline.vae = pipelines.vae(latent_channels=16)
    with pytest.raises(UserError, match="has 16 latent channels; family latent-diffusion needs 3 and 4"):
        LatentDiffusion(pipeline)


def test_another_noise_schedule_is_one_sentence():
    pipeline = pipelines.inpainting()
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UserError, match=r"FlowMatchEulerDiscreteScheduler, but only those with DDPM's noise"):
        LatentDiffusion(pipeline)


@pytest.mark.parametrize(("part", "key"), [("unet", "conv_in.weight"), ("vae", "quant_conv.weight"),
                                           ("text_encoder", "")])  # fmt: skip
def test_a_missing_weight_is_named(folder, part, key):
    safetensors = pytest.importorskip("safetensors.torch")
    (file,) = (folder / part).glob("*.safetensors")
    weights = safetensors.load_file(file)
    key = key or next(name for name in weights if "final_layer_norm" in name)
    weights.pop(key)
    safetensors.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lacks 1 of the model's weights, such as .*{key.split('.')[-1]}"):
        models.load("latent-diffusion", folder)


def test_a_pickle_of_a_component_is_not_opened(folder):
    (file,) = (folder / "unet").glob("*.safetensors")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"has its weights as a pickle, diffusion_pytorch_model.bin, and a pickle can"):
        models.load("latent-diffusion", folder)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json: give the folder"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "does not list the components"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "no pipeline could be loaded from"),
        (lambda folder: shutil.rmtree(folder / "unet"), "there is no folder .*unet"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer has no vocabulary, tokenizer.json, or"),
        (lambda folder: edited(folder / "unet" / "config.json", in_channels=8), "size mismatch for conv_in.weight"),
    ],
)
def test_a_broken_folder_is_one_sentence(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        models.load("latent-diffusion", folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [None, [8, 16]])
def test_a_size_that_files_cannot_have_is_one_sentence(size):
    model = LatentDiffusion(pipelines.inpainting())
    model.module.register_to_config(sample_size=size)
    with pytest.raises(UserError, match=r"sample_size in unet/config.json is .*; write the side of the latents"):
        print(model.size)


@pytest.mark.parametrize("sides", [(12, 16), (16, 20)])
def test_sides_that_the_pipeline_does_not_take_are_one_sentence(model, sides):
    with pytest.raises(UserError, match=rf"sides are multiples of 8 pixels, not {sides[0]}x{sides[1]}"):
        model.inputs(torch.zeros(2, 3, *sides), TASK)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Reconstruct(), "task reconstruct hides nothing, but family latent-diffusion only fills in hidden pixels"),
        (torch.nn.Identity(), "family latent-diffusion needs a task with a mask"),
        (CenterCrop(0.05), "hides too little: at the resolution of the latents, one element for 2x2 pixels, nothing"),
    ],
)
def test_inpainting_needs_a_hole(inpainter, images, task, sentence):
    with pytest.raises(UserError, match=sentence):
        inpainter.inputs(images[0], task)
