"""Low-rank adapters: what they share with the model, mixtures, files that other libraries read, and refusals."""

import copy
import json

import pytest
import tiny
import torch
from torch import nn

from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models.adapters import UNMODIFIED, Adapted, copied
from unlearn_ext.models.autoencoder import Autoencoder
from unlearn_ext.optim import GradientNorm
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.history import History
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.trainer import Trainer

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")

FAMILIES = ("vqgan", "autoencoder", "mae", "diffusion", "mage")


def noise(count=4):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def latents(model):
    with torch.no_grad():
        return model.encode(*model.inputs(noise(), CenterCrop(0.5)))


def moved(model, rank=2, seed=0):
    """Return an adapted model with random factors and norms."""
    adapted, generator = Adapted(model, rank, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.encoder_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted


def state(adapted):
    return [parameter.detach().clone() for parameter in adapted.encoder_parameters()]


def saved(adapted, folder):
    """Save an adapted model as a run does, and return the folder of the adapter."""
    adapted.original.save_pretrained(folder / UNMODIFIED)
    adapted.save_pretrained(folder / "point")
    return folder / "point"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing_and_copies_nothing(family):
    model = tiny.model(family)
    before, generator = latents(model), torch.get_rng_state()
    adapted = Adapted(model, 2, 0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(latents(adapted), before)
    assert all(parameter.requires_grad for parameter in model.encoder_parameters())
    trained = {id(parameter) for parameter in adapted.encoder_parameters()}
    assert {id(p) for p in adapted.module.parameters() if p.requires_grad} == trained
    places = {parameter.data_ptr() for parameter in model.module.parameters()}
    for one in (adapted, adapted.copy()):
        own = [p for p in one.module.parameters() if p.data_ptr() not in places]
        assert sum(p.numel() for p in own) == sum(p.numel() for p in adapted.encoder_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_only_layers_of_the_encoder_are_adapted(family):
    adapted, model = moved(tiny.model(family)), tiny.model(family)
    merged, encoder = adapted.merged(), {id(p) for p in model.encoder_parameters()}
    changed = {
        name
        for (name, before), after in zip(model.module.named_parameters(), merged.module.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    assert changed
    assert changed <= {name for name, parameter in model.module.named_parameters() if id(parameter) in encoder}


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_latents_are_those_of_a_separate_copy_to_the_bit(family):
    model = tiny.model(family)
    separate = copy.deepcopy(model)
    adapted = Adapted(model, 2, 0)
    objectives = Objectives.freeze(
        adapted, noise(8), noise(8).flip(0), CenterCrop(0.5), augment=lambda images, draw: images,
        settings=Settings(batch_size=8, lora=2, lr=0.1),
    )  # fmt: skip
    assert objectives.frozen._encode.__self__ is model
    Trainer(adapted, objectives, History()).train(GradientNorm(), 3)
    with torch.no_grad():
        inputs = model.inputs(noise(), CenterCrop(0.5))
        assert torch.equal(objectives.frozen(*inputs), separate.encode(*inputs))
        assert not torch.allclose(adapted.encode(*inputs), separate.encode(*inputs), atol=1e-3)
        off = adapted.copy()
        for layer in off._layers.values():
            layer.enable_adapters(False)
        for norm, name in ((norm, name) for name, norm in off._norms.items()):
            norm.load_state_dict(separate.module.get_submodule(name).state_dict())
        assert torch.equal(off.encode(*inputs), separate.encode(*inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_of_adapters_is_the_mixture_of_their_weights(family):
    model = tiny.model(family)
    less, more, mixed = moved(model, 2, 1), moved(model, 3, 2), Adapted(model, 2, 0)
    mixed.mix(state(less), state(more), 0.3)
    assert len(mixed.encoder_parameters()[0]) == 5
    ends = (one.merged().encoder_parameters() for one in (less, more, mixed))
    for a, b, c in zip(*ends, strict=True):
        torch.testing.assert_close(c, torch.lerp(a, b, 0.3))
    mixed.mix(state(Adapted(model, 2, 0)), state(more), 1.5)  # a line from the unmodified model keeps the rank
    assert len(mixed.encoder_parameters()[0]) == 3
    for theta, b, c in zip(*(m.encoder_parameters() for m in (model, more.merged(), mixed.merged())), strict=True):
        torch.testing.assert_close(c, torch.lerp(theta, b, 1.5), rtol=1e-5, atol=1e-6)
    mixed.mix(state(Adapted(model, 2, 0)), state(more), 0.0)
    assert torch.equal(latents(mixed), latents(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_loads_again(family, tmp_path):
    adapted = moved(tiny.model(family))
    place = saved(adapted, tmp_path)
    loaded, merged = models.load(family, place), adapted.merged()
    assert type(loaded) is type(merged)
    for mine, its in zip(merged.module.parameters(), loaded.module.parameters(), strict=True):
        assert torch.equal(mine, its)
    torch.testing.assert_close(latents(loaded), latents(adapted), rtol=1e-4, atol=1e-5)
    for mine, its in zip(state(adapted), Adapted(adapted.original, 1, 0).read(place), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("family", FAMILIES[:-1])  # MAGE has norms in its decoder whose names end alike
def test_peft_reads_the_file(family, tmp_path):
    adapted = moved(tiny.model(family))
    theirs = peft.PeftModel.from_pretrained(tiny.model(family).module, saved(adapted, tmp_path)).merge_and_unload()
    merged = adapted.merged().module.state_dict()
    for (name, mine), its in zip(merged.items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, its, msg=name)


def test_transformers_reads_the_file(tmp_path):
    adapted = moved(tiny.model("mae"))
    module = tiny.vitmae()
    module.load_adapter(str(saved(adapted, tmp_path)))
    theirs = copy.copy(adapted.original)
    theirs.module = module
    torch.testing.assert_close(latents(theirs), latents(adapted))


class Denoiser:
    """The U-Net of a latent-diffusion pipeline; its E is the down blocks, at timestep 0 and without a prompt."""

    family, random, channels, size, device = "latent-diffusion", False, 1, 8, torch.device("cpu")

    def __init__(self):
        torch.manual_seed(0)
        self.module = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4,
            cross_attention_dim=4, attention_head_dim=2, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()  # fmt: skip

    def encoder_parameters(self):
        return list(self.module.down_blocks.parameters())

    def inputs(self, images, task, draw=0):
        return (task(images),)

    def encode(self, images):
        return self.module(images, 0, encoder_hidden_states=torch.zeros(len(images), 1, 4)).sample


def test_a_diffusers_pipeline_reads_the_file_of_its_unet(tmp_path):
    model = Denoiser()
    adapted = moved(model)
    adapted.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_of.json", "pytorch_lora_weights.safetensors"]
    other = Denoiser()
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=tiny.kl(), text_encoder=None, tokenizer=None, unet=other.module, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(latents(other), latents(adapted))
    assert not torch.allclose(latents(other), latents(model), atol=1e-3)
    pipeline.set_adapters(pipeline.get_active_adapters(), 0.5)  # the adapter as a dial
    adapted.mix(state(Adapted(model, 2, 0)), state(adapted), 0.5)
    torch.testing.assert_close(latents(other), latents(adapted))


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, cut = moved(tiny.model("diffusion")), moved(tiny.model("diffusion"))
    cut.enable_gradient_checkpointing()
    grads = []
    for one in (plain, cut):
        one.encode(*one.inputs(noise(), CenterCrop(0.5))).square().mean().backward()
        grads.append([parameter.grad for parameter in one.encoder_parameters()])
    for mine, its in zip(*grads, strict=True):
        torch.testing.assert_close(mine, its)


def test_a_copy_of_a_model_without_adapter_is_a_whole_one(model):
    places = {parameter.data_ptr() for parameter in model.module.parameters()}
    assert not places & {parameter.data_ptr() for parameter in copied(model).module.parameters()}


class Attention(nn.Module):
    """An encoder whose attention uses the weight of its last layer without calling it."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(64, 8), nn.MultiheadAttention(8, 1, batch_first=True)

    def forward(self, images):
        hidden = self.first(images.flatten(1))[:, None]
        return self.attention(hidden, hidden, hidden)[0][:, 0]


DECODER = nn.Sequential(nn.Linear(8, 64), nn.Unflatten(1, (1, 8, 8)))


def test_layers_that_are_used_without_a_call_are_left_out():
    adapted = Adapted(Autoencoder(Attention(), DECODER, channels=1, size=8), 2, 0)
    assert list(adapted._layers) == ["encoder.first"]


@pytest.mark.parametrize(
    "encoder",
    [
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 1, 57), nn.Flatten()),
        nn.Conv2d(1, 2, 4, stride=4),
    ],
    ids=["no such layer", "one layer itself"],
)
def test_an_encoder_that_cannot_be_adapted_is_refused(encoder):
    decoder = nn.Sequential(nn.Flatten(), *DECODER)
    with pytest.raises(UserError, match="cannot be adapted: it must contain linear or convolutional layers"):
        Adapted(Autoencoder(encoder, decoder, channels=1, size=8), 2, 0)


def test_a_model_that_has_an_adapter_is_refused(model):
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules="encoder.conv_in"), model.module)
    with pytest.raises(UserError, match="already has an adapter: merge it into the weights first"):
        Adapted(model, 2, 0)


def test_an_adapter_of_another_model_is_refused(model, tmp_path):
    place = saved(moved(model), tmp_path)
    with torch.no_grad():
        model.encoder_parameters()[0].add_(1)
    with pytest.raises(UserError, match="belongs to another model than this one"):
        Adapted(model, 2, 0).read(place)
    model.save_pretrained(tmp_path / UNMODIFIED)
    with pytest.raises(UserError, match="belongs to another model than this one"):
        models.load("vqgan", place)


def test_a_model_that_is_loaded_like_an_adapted_one_has_its_prompts(tmp_path):
    import pipelines

    from unlearn_ext.models.latent_diffusion import LatentDiffusion
    from unlearn_ext.models.prompts import Prompts

    adapted = Adapted(LatentDiffusion(pipelines.inpainting(), Prompts("a red bus")), 2, 0)
    assert models.load_like(adapted, saved(adapted, tmp_path)).prompts == Prompts("a red bus")
    assert adapted.copy()._inner.prompts == Prompts("a red bus")


def test_an_adapter_without_its_model_is_refused(model, tmp_path):
    place = saved(moved(model), tmp_path)
    (tmp_path / UNMODIFIED).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"the model that it belongs to is not in .*unmodified"):
        models.load("vqgan", place)


def test_a_model_that_was_trained_whole_is_no_adapter(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was trained whole, without an adapter: leave out --lora"):
        Adapted(model, 2, 0).read(tmp_path)


def test_damaged_adapters_are_refused(model, tmp_path):
    place = saved(moved(model), tmp_path)
    file = place / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="no adapter could be loaded from"):
        models.load("vqgan", place)
    from safetensors.torch import load, save_file

    weights = load(whole)
    weights.pop(gone := sorted(weights)[0])
    save_file(weights, file)
    with pytest.raises(UserError, match=rf"the shape of {gone} is None, not \["):
        models.load("vqgan", place)
    weights = load(whole)
    weights[gone] = weights[gone].flatten(1)[:, :1].clone()
    save_file(weights, file)
    with pytest.raises(UserError, match=rf"the shape of {gone} is \[2, 1\], not \[2, "):
        models.load("vqgan", place)
    file.write_bytes(whole)
    (place / "adapter_of.json").write_text("{}")
    with pytest.raises(UserError, match="no adapter could be loaded from"):
        models.load("vqgan", place)


def test_the_file_of_the_configuration_is_the_same_every_time(model, tmp_path):
    texts = []
    for name in ("one", "two"):
        moved(model).save_pretrained(tmp_path / name)
        texts.append((tmp_path / name / "adapter_config.json").read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["r"] == 2
