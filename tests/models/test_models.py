import importlib
import json
from pathlib import Path

import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext.errors import UserError, require
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.settings import Settings

CONVOLUTIONAL = ("vqgan", "autoencoder", "diffusion")
OF_A_LIBRARY = [family for family in tiny.FAMILIES if family != "mage"]  # with variants, and names of their own


def saved(family: str, folder: Path, **config: object) -> Path:
    """Save a tiny model, and change entries of its config.json."""
    tiny.model(family).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


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


@pytest.mark.parametrize("family", OF_A_LIBRARY)
def test_a_pickle_is_not_opened(family, tmp_path):
    tiny.model(family).save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    pickled = weights.with_suffix(".bin")
    torch.save(tiny.model(family).module.state_dict(), pickled)
    weights.unlink()
    with pytest.raises(UserError, match=rf"as a pickle, {pickled.name}, and a pickle can run any code when"):
        models.load(family, tmp_path)
    with pytest.raises(UserError, match=rf"{pickled.name} is a file; give the folder that the model's library saved"):
        models.load(family, pickled)


def test_a_missing_extra_is_named():
    with pytest.raises(UserError, match=r"pip install 'unlearn-ext\[images\]'"):
        require("a_package_that_is_not_there.part", "images")


@pytest.mark.parametrize("family", OF_A_LIBRARY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("variant", [None, "low"])
def test_weights_of_any_precision_are_loaded_in_float32(family, dtype, variant, tmp_path):
    saved(family, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.unlink()
    model = tiny.model(family)
    model.module.to(dtype).save_pretrained(tmp_path, variant=variant)
    loaded = models.load(family, tmp_path)
    for name, value in loaded.module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[name].float())
    assert models.reconstruct(loaded, torch.zeros(2, 1, 8, 8), CenterCrop(0.5)).isfinite().all()
    loaded.save_pretrained(tmp_path / "again")
    safetensors = pytest.importorskip("safetensors.torch")
    (path,) = (tmp_path / "again").glob("*.safetensors")
    assert {value.dtype for value in safetensors.load_file(path).values()} == {torch.float32}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_module_of_another_precision_is_refused(family, dtype):
    model = tiny.model(family)
    rest = (model.scheduler,) if family == "diffusion" else ()
    with pytest.raises(UserError, match=rf"weights are {str(dtype)[6:]}; make them float32 \(module.float\(\)\)"):
        type(model)(model.module.to(dtype), *rest)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_weights_partly_in_half_precision_are_refused_before_anything_is_trained(precision):
    model = tiny.model("vqgan")
    model.module.decoder.to(getattr(torch, precision))  # the decoder runs only for pictures, not in the objectives
    images = torch.rand(2, 8, 1, 8, 8) * 2 - 1
    with pytest.raises(UserError, match=rf"weights are {precision}"):
        ux.unlearn(model, *images, task=CenterCrop(0.5), epsilon=0.5, settings=Settings(precision=precision))


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [8, [8, 8], [16, 16]])
def test_a_size_may_be_a_number_or_a_pair(family, size, tmp_path):
    model = models.load(family, saved(family, tmp_path, sample_size=size))
    assert model.size == (size if isinstance(size, int) else size[0])
    model.save_pretrained(tmp_path / "again")
    assert models.load(family, tmp_path / "again").size == model.size


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [0, -8, "8", 8.0, True, [8], [8, 0], [8, 8, 8], {"height": 8}])
def test_an_invalid_size_is_refused(family, size, tmp_path):
    with pytest.raises(UserError, match=r"sample_size in the model's configuration is .*; it must be a whole number"):
        models.load(family, saved(family, tmp_path, sample_size=size))


def test_a_size_that_is_missing_is_asked_for_where_files_must_be_resized(tmp_path):
    for family in ("vqgan", "diffusion"):
        model = models.load(family, saved(family, tmp_path / family, sample_size=None))
        with pytest.raises(UserError, match=r"does not say how large its images are: write .*\"sample_size\": 256"):
            print(model.size)
        model.module.register_to_config(sample_size=8)
        assert model.size == 8
    with pytest.raises(UserError, match=r"gives no sample_size: write .* into its config.json"):  # always required
        models.load("autoencoder", saved("autoencoder", tmp_path / "autoencoder", sample_size=None))


@pytest.mark.filterwarnings("ignore:ε = ")
@pytest.mark.parametrize("family", ["vqgan", "diffusion"])
@pytest.mark.parametrize("size", [None, [8, 16]], ids=str)
def test_tensors_that_are_no_squares_are_unlearned_whatever_the_configuration_says(family, size, tmp_path):
    model = models.load(family, saved(family, tmp_path, sample_size=size))
    images = torch.rand(2, 8, 1, 8, 16) * 2 - 1
    unlearned = ux.unlearn(model, *images, task=CenterCrop(0.5), epsilon=0.5, settings=Settings(steps=1, batch_size=4))
    assert models.reconstruct(unlearned, images[0], CenterCrop(0.5)).shape == (8, 1, 8, 16)
    unlearned.save_pretrained(tmp_path / "again")
    assert models.load(family, tmp_path / "again").module.config.sample_size == size
    if size is not None:
        with pytest.raises(UserError, match="made for images of 8x16 pixels, but image files are read as squares only"):
            print(model.size)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("vqgan", {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}),
        ("autoencoder", {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}),
        ("diffusion", {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}),
    ],
)
@pytest.mark.parametrize("sides", [(9, 9), (8, 10), (6, 4)])
def test_images_that_would_come_back_in_another_size_are_refused(family, options, sides):
    model = tiny.wrapped(family, block_out_channels=(8, 8, 8), sample_size=list(sides), **options)
    with pytest.raises(UserError, match=rf"multiples of 4 pixels, not {sides[0]}x{sides[1]}"):
        model.inputs(torch.zeros(2, 1, *sides), CenterCrop(0.5))
    with pytest.raises(UserError, match=rf"multiples of 4 pixels, not {sides[0]}x{sides[1]}"):
        print(model.size)
    inputs = model.inputs(torch.zeros(2, 1, 8, 12), CenterCrop(0.5))
    assert model.decode(model.encode(*inputs), *inputs).shape == (2, 1, 8, 12)


@pytest.mark.parametrize(("family", "given"), [("vqgan", 3), ("autoencoder", 3), ("vqgan", 2)])
def test_a_model_that_gives_back_other_channels_is_refused(family, given):
    with pytest.raises(UserError, match=f"takes images of 1 channels and returns {given}"):
        tiny.wrapped(family, out_channels=given)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kept", ["all but one", "half", "prefixed", "none"])
def test_no_weight_is_made_up_that_the_checkpoint_lacks(family, kept, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    (path,) = saved(family, tmp_path).glob("*.safetensors")
    weights = safetensors.load_file(path)
    names = sorted(weights)
    lacking = {"all but one": names[:1], "half": names[: len(names) // 2]}.get(kept, names)
    prefix = {"prefixed": {f"_orig_mod.{name}": value for name, value in weights.items()}}.get(kept, {})
    others = {name: value for name, value in weights.items() if name not in lacking}
    safetensors.save_file(others | prefix, path, {"format": "pt"})
    held = "; it has others, such as _orig_mod." if prefix else ": save the whole model"
    with pytest.raises(UserError, match=rf"lacks {len(lacking)} of the model's weights, such as {lacking[0]}{held}"):
        models.load(family, tmp_path)


WRAPPERS = {
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "data parallel": torch.nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled, in data parallel": lambda module: torch.nn.DataParallel(torch.compile(module, backend="eager")),
    "averaged, compiled": lambda module: torch.compile(torch.optim.swa_utils.AveragedModel(module), backend="eager"),
    "distributed": torch.nn.parallel.DistributedDataParallel,
}


@pytest.fixture
def one_process(tmp_path):
    """Initialize a process group of this process only."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_module_is_as_the_module_itself(family, wrapper, tmp_path, one_process):
    plain = tiny.model(family)
    names = list(plain.module.state_dict())
    module = WRAPPERS[wrapper](tiny.model(family).module)
    module = type(plain)(module, *((plain.scheduler,) if family == "diffusion" else ()))
    assert list(module.module.state_dict()) == names
    for p, q in zip(module.encoder_parameters(), plain.encoder_parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.requires_grad
    module.save_pretrained(tmp_path / "saved")
    assert list(models.load(family, tmp_path / "saved").module.state_dict()) == names


@pytest.mark.parametrize(("family", "part"), [("vqgan", "encoder"), ("autoencoder", "decoder"), ("mae", "vit")])
@pytest.mark.parametrize("wrapper", ["compiled", "data parallel"])
def test_a_wrapped_part_of_a_module_is_as_the_part_itself(family, part, wrapper, tmp_path):
    module = tiny.model(family).module
    names = list(module.state_dict())
    setattr(module, part, WRAPPERS[wrapper](getattr(module, part)))
    assert list(module.state_dict()) != names
    type(tiny.model(family))(module).save_pretrained(tmp_path)
    assert list(models.load(family, tmp_path).module.state_dict()) == names


def test_wrapped_blocks_in_lists_are_as_the_blocks_themselves(tmp_path):
    plain = tiny.model("diffusion")
    names = list(plain.module.state_dict())
    for blocks in (plain.module.down_blocks, plain.module.up_blocks):
        for number, block in enumerate(blocks):
            blocks[number] = torch.compile(block, backend="eager")
    assert list(plain.module.state_dict()) != names
    type(plain)(plain.module, plain.scheduler).save_pretrained(tmp_path)
    assert list(models.load("diffusion", tmp_path).module.state_dict()) == names


@pytest.mark.filterwarnings("ignore:ε = ")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_module_compiled_in_place_stays_what_it_is(family, images, tmp_path):
    model = tiny.model(family)
    names = list(model.module.state_dict())
    model.module.compile(backend="eager")
    again = type(model)(model.module, *((model.scheduler,) if family == "diffusion" else ()))
    settings = Settings(steps=1, batch_size=8)
    ux.unlearn(again, *images, task=CenterCrop(0.5), epsilon=0.5, settings=settings).save_pretrained(tmp_path)
    assert list(models.load(family, tmp_path).module.state_dict()) == names
