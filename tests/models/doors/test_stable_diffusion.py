"""Single files of Stable Diffusion, against an independent U-Net and VAE of the original architecture."""

import os
from dataclasses import replace

import pytest
import torch
from originals import stable_diffusion as original

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models import doors
from unlearn_ext.models.doors import stable_diffusion
from unlearn_ext.models.doors.checkpoint import Checkpoint
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.settings import Settings

transformers = pytest.importorskip("transformers")
import pipelines  # noqa: E402

TEXT = "cond_stage_model.transformer.text_model."
CONFIG = {
    "model": {"params": {"scale_factor": 0.5, "unet_config": {"params": {"image_size": 8, "num_heads": 8}}}}
}  # 16 pixels


def made(channels=9, layers=1, multiples=(1, 2)):
    """Return an original U-Net, VAE and text encoder with random weights, none of which is 0, and their state dict."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = original.UNet(channels, layers=layers, multiples=multiples)
        vae = original.VAE(layers=layers)
        text = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=1, vocab_size=514,
                max_position_embeddings=77, bos_token_id=512, eos_token_id=513,
            )
        ).eval()  # fmt: skip
        for module in (unet, vae):
            for parameter in module.parameters():
                parameter.data.add_(0.02 * torch.randn_like(parameter))
    weights = {f"model.diffusion_model.{name}": value for name, value in unet.state_dict().items()}
    weights |= {f"first_stage_model.{name}": value for name, value in vae.state_dict().items()}
    weights |= {f"{TEXT}{name}": value for name, value in text.state_dict().items()}
    weights |= {f"{TEXT}embeddings.position_ids": torch.arange(77)[None], "betas": torch.linspace(0.1, 0.2, 1000)}
    weights |= {
        "model_ema." + f"diffusion_model.{name}".replace(".", ""): value + 1
        for name, value in unet.state_dict().items()
    }
    return (unet.eval(), vae.eval(), text), weights


@pytest.fixture
def file(tmp_path):
    """Return the path of a file beside which a tokenizer lies."""
    pipelines.tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(("channels", "layers", "multiples"), [(9, 1, (1, 2)), (8, 1, (1, 2)), (9, 2, (1, 2, 4, 4))])
def test_the_outputs_are_those_of_the_original(file, channels, layers, multiples):
    (unet, vae, text), weights = made(channels, layers, multiples)
    checkpoint = Checkpoint(file, weights, config=CONFIG)
    assert stable_diffusion.recognises(checkpoint)
    model = stable_diffusion.load(checkpoint)
    generator = torch.Generator().manual_seed(1)
    latents, context = torch.randn(2, channels, 8, 8, generator=generator), torch.randn(2, 7, 64, generator=generator)
    times = torch.tensor([7, 900])
    with torch.no_grad():
        made_by_it = model.module(latents, times, encoder_hidden_states=context).sample
        torch.testing.assert_close(made_by_it, unet(latents, times, context), atol=1e-5, rtol=1e-5)
        images = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
        its = model.pipeline.vae
        torch.testing.assert_close(its.encode(images).latent_dist.mode(), vae.mean(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(its.decode(latents[:, :4]).sample, vae.decode(latents[:, :4]), atol=1e-5, rtol=1e-5)
        ids = torch.tensor([[512, 5, 9, 513, 513]])
        torch.testing.assert_close(model.pipeline.text_encoder(ids)[0], text(ids)[0])
    assert (model.size, its.config.scaling_factor) == (16, 0.5)
    name = "StableDiffusionInpaintPipeline" if channels == 9 else "StableDiffusionInstructPix2PixPipeline"
    assert type(model.pipeline).__name__ == name


def test_without_a_configuration_it_is_that_of_stable_diffusion_1(file):
    model = stable_diffusion.load(Checkpoint(file, made()[1]))
    assert model.pipeline.vae.config.scaling_factor == 0.18215
    assert model.module.config.sample_size == 64
    expected = pipelines.scheduler()
    assert torch.equal(model.pipeline.scheduler.betas, expected.betas)
    assert model.pipeline.scheduler.config.prediction_type == "epsilon"


def test_a_file_is_recognised_unlearned_and_written_back(file):
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {name: value.half() if value.is_floating_point() else value for name, value in made()[1].items()}
    safetensors.save_file(weights, file)
    assert models.family_of(file) == "latent-diffusion"
    model = models.load("latent-diffusion", file)
    images = torch.rand(2, 4, 3, 512, 512).sub(0.5)[..., :16, :16]
    unlearned = ux.unlearn(
        model, *images, task=CenterCrop(0.5), epsilon="50%", settings=Settings(steps=1, batch_size=4)
    )
    back = stable_diffusion.write_back(unlearned, doors.read(file))
    assert back.keys() == weights.keys()
    assert all(back[name].dtype == value.dtype and back[name].shape == value.shape for name, value in weights.items())
    changed = {name for name in weights if not torch.equal(back[name], weights[name])}
    parts = ("model.diffusion_model.input_blocks.", "model.diffusion_model.middle_block.")
    averaged = ("model_ema.diffusion_modelinput_blocks", "model_ema.diffusion_modelmiddle_block")
    assert any(name.startswith(parts) for name in changed)
    assert all(name.startswith((*parts, *averaged)) for name in changed)
    first = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    ema = "model_ema.diffusion_modelinput_blocks10in_layers2weight"
    assert torch.equal(back[first], back[ema])  # the averaged copy has forgotten too
    again = stable_diffusion.load(replace(doors.read(file), weights=back))
    for one, other in zip(again.encoder_parameters(), unlearned.encoder_parameters(), strict=True):
        assert torch.equal(one, other.half().float())


CHANGES = {
    "lacks the weight of UNet2DConditionModel.conv_out.bias": lambda w: w.pop("model.diffusion_model.out.2.bias"),
    "lacks the weight of AutoencoderKL.quant_conv.weight": lambda w: w.pop("first_stage_model.quant_conv.weight"),
    "lacks the weight of CLIPTextModel.final_layer_norm.bias": lambda w: w.pop(f"{TEXT}final_layer_norm.bias"),
    "has more, which CLIPTextModel has no place for": lambda w: w.update({f"{TEXT}more": torch.ones(1)}),
    "lacks a weight, or it has another shape: .*input_blocks.1.0.out_layers.3.weight": lambda w: w.pop(
        "model.diffusion_model.input_blocks.1.0.out_layers.3.weight"
    ),
    "lacks a weight, or it has another shape: ": lambda w: w.update(
        {f"{TEXT}embeddings.token_embedding.weight": torch.ones(5)}
    ),
    "has lora.up, which is no weight of Stable Diffusion 1": lambda w: w.update({"lora.up": torch.ones(1)}),
    "takes 4 channels; it must take 9 for inpainting, or 8": lambda w: w.update(
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 4, 3, 3)}
    ),
    "is a file of SDXL, whose configuration is not in the file": lambda w: w.update(
        {"conditioner.embedders.0.weight": torch.ones(1)}
    ),
    "is a file of Stable Diffusion 2": lambda w: w.update({"cond_stage_model.model.ln_final.bias": torch.ones(1)}),
    "has UNet2DConditionModel.conv_out.bias as torch.int8, not as floating-point": lambda w: w.update(
        {"model.diffusion_model.out.2.bias": torch.ones(4, dtype=torch.int8)}
    ),
    r"has AutoencoderKL.quant_conv.bias with shape \[4\], not \[8\]": lambda w: w.update(
        {"first_stage_model.quant_conv.bias": torch.ones(4)}
    ),
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_what_does_not_belong_together_is_named(file, sentence):
    _, weights = made()
    CHANGES[sentence](weights)
    with pytest.raises(UserError, match=sentence):
        stable_diffusion.load(Checkpoint(file, weights))


def test_a_u_net_alone_is_not_recognised(file):
    weights = {name: value for name, value in made()[1].items() if name.startswith("model.")}
    assert not stable_diffusion.recognises(Checkpoint(file, weights))


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"parameterization": "x0"}, "predicts x0 according to its configuration; known are eps, v"),
        ({"timesteps": 10**12}, "has timesteps = 1000000000000; usual is 1000"),
        ({"scale_factor": "much"}, "has scale_factor = 'much'; usual is 0.18215"),
        ({"unet_config": {"params": {"num_heads": -1}}}, "has num_heads = -1; usual is 8"),
    ],
)
def test_odd_entries_of_the_configuration_are_named(file, params, sentence):
    with pytest.raises(UserError, match=sentence):
        stable_diffusion.load(Checkpoint(file, made()[1], config={"model": {"params": params}}))


def test_without_a_tokenizer_and_without_network_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(stable_diffusion, "ask_hub", lambda *_: "no network")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=r"the tokenizer is not in .*put vocab.json and merges.txt .* into a folder"):
        stable_diffusion.load(Checkpoint(tmp_path / "model.safetensors", made()[1]))
    os.mkdir(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="tokenizer has no vocabulary"):
        stable_diffusion.load(Checkpoint(tmp_path / "model.safetensors", made()[1]))
