import copy
import importlib
import sys
from collections import namedtuple

import pytest
import tiny
import torch
from torch import distributions, nn

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models.autoencoder import Autoencoder, AutoencoderKL
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings

QUICK = {"task": CenterCrop(0.5), "epsilon": 0.1, "settings": Settings(steps=3, batch_size=16)}


@pytest.fixture(params=[True, False], ids=["quant_conv", "no quant_conv"])
def kl(request):
    """Return a tiny AutoencoderKL for 8x8 grey images with random weights."""
    return AutoencoderKL(tiny.kl(use_quant_conv=request.param))


@pytest.fixture
def pair():
    """Return an autoencoder of two linear layers."""
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


def test_without_extras_own_modules_are_unlearned_and_a_sweep_names_what_it_needs(pair, images, tmp_path, monkeypatch):
    for module in ("psutil", "filelock", "safetensors", "diffusers", "transformers", "PIL", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it now raises ModuleNotFoundError
    ux.unlearn(pair, *images, **QUICK)
    for options in ({}, {"out": tmp_path / "run"}):
        with pytest.raises(
            UserError, match=r"(psutil|filelock) is not installed; .* pip install 'unlearn-ext\[images\]'"
        ):
            ux.sweep(pair, *images, task=QUICK["task"], points=1, settings=QUICK["settings"], **options)


def test_a_pair_is_saved_as_weights_that_its_own_classes_read(pair, tmp_path):
    load_model = pytest.importorskip("safetensors.torch").load_model
    pair.save_pretrained(tmp_path)
    for module, name in ((pair.encoder, "encoder"), (pair.decoder, "decoder")):
        before = torch.cat([p.flatten() for p in module.parameters()])
        module.apply(lambda layer: layer.reset_parameters() if hasattr(layer, "reset_parameters") else None)
        load_model(module, tmp_path / f"{name}.safetensors")
        assert torch.equal(torch.cat([p.flatten() for p in module.parameters()]), before)
    with pytest.raises(UserError, match="weights of an encoder and a decoder, but not their classes"):
        models.load("autoencoder", tmp_path)


def test_pairs_that_cannot_be_unlearned():
    linear = torch.nn.Linear(4, 4)
    with pytest.raises(UserError, match="no parameters"):
        Autoencoder(torch.nn.Flatten(), linear, channels=1, size=8)
    with pytest.raises(UserError, match="share parameters"):
        Autoencoder(linear, linear, channels=1, size=8)
    with pytest.raises(UserError, match="2 channels"):
        Autoencoder(linear, torch.nn.Linear(4, 4), channels=2, size=8)
    with pytest.raises(UserError, match=r"the encoder is a function; give a torch.nn.Module"):
        Autoencoder(torch.compile(lambda images: images), linear, channels=1, size=8)
    with pytest.raises(UserError, match=r"the decoder is a method; give a torch.nn.Module"):
        Autoencoder(linear, linear.forward, channels=1, size=8)
    for size in (0, 8.0, (8, 8), None):
        with pytest.raises(UserError, match="it must be the side of the images, a whole number of pixels"):
            Autoencoder(linear, torch.nn.Linear(4, 4), channels=1, size=size)


class Encoder(nn.Module):
    """An encoder from images [N, 1, 8, 8] to latents [N, 4], which ``returned`` turns into its output."""

    def __init__(self, returned=lambda latents: latents):
        super().__init__()
        self.linear, self.returned = nn.Linear(64, 4), returned

    def forward(self, images):
        return self.returned(self.linear(images.flatten(1)))


class Decoder(nn.Module):
    """A decoder from latents [N, 4] to images [N, 1, 8, 8], which ``returned`` turns into its output."""

    def __init__(self, returned=lambda images: images):
        super().__init__()
        self.linear, self.returned = nn.Linear(4, 64), returned

    def forward(self, latents):
        return self.returned(self.linear(latents).view(-1, 1, 8, 8))


def built(encoder=None, decoder=None):
    encoder, decoder = (Encoder() if encoder is None else encoder), (Decoder() if decoder is None else decoder)
    return Autoencoder(encoder, decoder, channels=1, size=8)


def kl_output(tensor):
    kl = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl")
    moments = torch.cat([tensor, torch.zeros_like(tensor)], 1)  # the distribution splits them along the channels again
    return kl.AutoencoderKLOutput(latent_dist=kl.DiagonalGaussianDistribution(moments))


def model_output(tensor):
    return pytest.importorskip("transformers.modeling_outputs").BaseModelOutput(last_hidden_state=tensor)


Moments = namedtuple("Moments", ["logvar", "mean"])

OBVIOUS = {
    "tensor": lambda tensor: tensor,
    "tuple of one": lambda tensor: (tensor,),
    "list of a tuple of one": lambda tensor: [(tensor,)],
    "tuple with None": lambda tensor: (tensor, None),
    "dictionary of one": lambda tensor: {"z": tensor},
    "dictionary with a mean": lambda tensor: {"logvar": tensor * 2, "mean": tensor},
    "named tuple with a mean": lambda tensor: Moments(tensor * 2, tensor),
    "normal distribution": lambda tensor: distributions.Normal(tensor, tensor.exp()),
    "independent normal distribution": lambda tensor: distributions.Independent(distributions.Normal(tensor, 1.0), 1),
    "Laplace distribution in a tuple": lambda tensor: (distributions.Laplace(tensor, 1.0),),
    "output of AutoencoderKL.encode": kl_output,
    "output of a transformer": model_output,
}
AMBIGUOUS = {
    "mean and variance": (lambda tensor: (tensor, tensor.exp()), r"a tuple of 2 \(Tensor, Tensor\)"),
    "three things": (lambda tensor: [tensor, {}, 3], r"a list of 3 \(Tensor, dict, int\)"),
    "two by name": (lambda tensor: {"z": tensor, "skip": tensor}, "a dict of z, skip"),
    "a mean that is no tensor": (lambda tensor: {"mean": (tensor, tensor), "std": tensor}, "a dict of mean, std"),
    "nothing": (lambda tensor: None, "a NoneType"),
    "an empty dictionary": (lambda tensor: {}, "an empty dict"),
    "a number": (lambda tensor: tensor.sum().item(), "a float"),
    "an array": (lambda tensor: tensor.detach().numpy(), "a ndarray"),
    "a distribution without mean": (
        lambda tensor: distributions.TransformedDistribution(
            distributions.Normal(tensor, 1.0), distributions.transforms.TanhTransform()
        ),
        "a TransformedDistribution",
    ),
}


@pytest.mark.filterwarnings("ignore:ε = ")
@pytest.mark.parametrize("output", OBVIOUS)
def test_an_encoder_and_a_decoder_may_return_what_stands_for_one_tensor(output, images, tmp_path):
    pytest.importorskip("safetensors")
    pair = built(Encoder(OBVIOUS[output]), Decoder(OBVIOUS[output]))
    latents = pair.encode(images[0])
    assert torch.equal(latents, pair.encoder.linear(images[0].flatten(1)))
    assert torch.equal(pair.decode(latents), pair.decoder.linear(latents).view(-1, 1, 8, 8))
    unlearned = ux.unlearn(pair, *images, **QUICK)
    assert not torch.equal(unlearned.encode(images[0]), latents)
    assert models.reconstruct(unlearned, images[0], CenterCrop(0.5)).shape == images[0].shape
    unlearned.save_pretrained(tmp_path)


@pytest.mark.parametrize("output", AMBIGUOUS)
def test_what_stands_for_no_one_tensor_is_refused_at_construction(output):
    returned, described = AMBIGUOUS[output]
    with pytest.raises(
        UserError, match=rf"the encoder returns {described}, and it is not obvious which tensor is meant"
    ):
        built(Encoder(returned))
    with pytest.raises(
        UserError, match=rf"the decoder returns {described}, and it is not obvious which tensor is meant"
    ):
        built(decoder=Decoder(returned))


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (
            lambda latents: latents.flatten(),
            r"float32 \[8\] for 2 images; the first dimension must be the number of images",
        ),
        (lambda latents: latents.T, r"float32 \[4, 2\] for 2 images"),
        (lambda latents: latents.mean(), r"float32 \[\] for 2 images"),
        (lambda latents: latents.sum(0, keepdim=True), r"float32 \[1, 4\] for 2 images"),
        (lambda latents: latents.argmax(1), r"latents, int64 \[2\], have no gradient"),
        (lambda latents: latents > 0, r"latents, bool \[2, 4\], have no gradient"),
        (lambda latents: latents.detach(), r"latents, float32 \[2, 4\], have no gradient"),
        (lambda latents: torch.zeros(2, 4), r"latents, float32 \[2, 4\], have no gradient"),
        (lambda latents: latents + 0j, r"latents, complex64 \[2, 4\], have no gradient"),
        (lambda latents: distributions.Categorical(logits=latents), r"latents, float32 \[2\], have no gradient"),
        (lambda latents: latents + torch.randn_like(latents), "different latents for the same images"),
        (lambda latents: distributions.Normal(latents, 1.0).rsample(), "different latents for the same images"),
        (lambda latents: nn.functional.dropout(latents, 0.9), "different latents for the same images"),
    ],
)
def test_latents_that_cannot_be_compared_or_trained_are_refused_at_construction(returned, sentence):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=sentence):
        built(Encoder(returned))


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (
            lambda made: made.flatten(1),
            r"the decoder returns float32 \[2, 64\] for the latents of 2 images; .* \[2, 1, 8, 8\]",
        ),
        (lambda made: made.expand(-1, 3, -1, -1), r"float32 \[2, 3, 8, 8\]"),
        (lambda made: made[..., :7, :], r"float32 \[2, 1, 7, 8\]"),
        (lambda made: made[:1], r"float32 \[1, 1, 8, 8\]"),
        (lambda made: made.movedim(1, -1), r"float32 \[2, 8, 8, 1\]"),
        (lambda made: made.mul(255).byte(), r"uint8 \[2, 1, 8, 8\] .* floating-point images"),
    ],
)
def test_a_decoder_of_something_else_than_the_images_is_refused_at_construction(returned, sentence):
    with pytest.raises(UserError, match=sentence):
        built(decoder=Decoder(returned))


@pytest.mark.parametrize(
    ("encoder", "decoder", "sentence"),
    [
        (lambda: nn.Linear(64, 4), None, r"the encoder fails on float32 \[2, 1, 8, 8\]: mat1 and mat2 shapes"),
        (lambda: nn.Conv2d(3, 4, 1), None, r"the encoder fails on float32 \[2, 1, 8, 8\]: .*3 channels"),
        (lambda: nn.Bilinear(8, 8, 4), None, r"the encoder fails on float32 \[2, 1, 8, 8\]: .*missing 1 required"),
        (None, lambda: nn.Linear(5, 64), r"the decoder fails on float32 \[2, 4\]: mat1 and mat2 shapes"),
        (None, lambda: nn.Embedding(8, 64), r"the decoder fails on float32 \[2, 4\]: "),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), None, "lazy layers whose weights are not init"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 8), nn.LazyBatchNorm2d()), None, "the encoder has lazy layers"),
        (None, lambda: nn.Sequential(nn.LazyLinear(64), nn.Unflatten(1, (1, 8, 8))), "the decoder has lazy layers"),
        (lambda: Encoder().half(), None, "weights are float16; make them float32"),
        (None, lambda: Decoder().double(), "weights are float64; make them float32"),
    ],
)  # fmt: skip
def test_modules_that_cannot_be_run_are_refused_at_construction(encoder, decoder, sentence):
    with pytest.raises(UserError, match=sentence):
        built(encoder and encoder(), decoder and decoder())


def test_lazy_layers_that_were_run_are_as_others(images):
    encoder = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    encoder(images[0])
    unlearned = ux.unlearn(built(encoder), *images, **QUICK)
    assert not torch.equal(unlearned.encode(images[0]), encoder(images[0]))


class Counting(nn.Module):
    """A module that writes to one buffer and replaces another in every forward pass, in both modes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 4)
        self.register_buffer("written", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, images):
        self.written.add_(1)
        self.replaced = self.replaced + 1
        return self.linear(images.flatten(1))


@pytest.mark.parametrize(
    "encoder",
    [
        Counting(),
        nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(64, 4))),
        nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 4))),
        Encoder(lambda latents: (latents, torch.rand(3))[:1]),
    ],
    ids=["counting", "batch norm", "batch norm of the batch", "old spectral norm", "spectral norm", "draws and drops"],
)
def test_construction_changes_no_buffer_and_no_random_generator(encoder):
    buffers, decoder = dict(encoder.named_buffers()), Decoder()
    before, state = {name: buffer.clone() for name, buffer in buffers.items()}, torch.get_rng_state()
    built(encoder, decoder)
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in encoder.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, before[name])
    assert all(parameter.grad is None for parameter in encoder.parameters())


class InPlace(nn.Module):
    """A module that changes its input in place."""

    def __init__(self, shape, change):
        super().__init__()
        self.linear, self.shape, self.change = nn.Linear(*shape[0]), shape[1], change

    def forward(self, given):
        return self.linear(self.change(given).flatten(1)).view(-1, *self.shape)


@pytest.mark.parametrize(
    "change", [lambda x: x.mul_(0.5), nn.ReLU(inplace=True), lambda x: x.clamp_(-0.1, 0.1), lambda x: x.zero_() + 1]
)
def test_modules_that_work_in_place_leave_images_and_latents_as_they_are(change, images):
    pair = built(InPlace(((64, 4), (4,)), change), InPlace(((4, 64), (1, 8, 8)), change))
    before = images[0].clone()
    latents = pair.encode(images[0])
    assert torch.equal(images[0], before)
    kept = latents.clone()
    pair.decode(latents)
    assert torch.equal(latents, kept)
    # With augmentation, the frozen encoder and the trained encoder get the same tensor, one after the other.
    settings = Settings(steps=1, batch_size=48)
    objectives = Objectives.freeze(pair, *images, CenterCrop(0.5), augment=lambda x, _: x, settings=settings)
    assert objectives.evaluate_f2(pair.encode) == 0


WRAPPERS = {
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "data parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled data parallel": lambda module: torch.compile(nn.DataParallel(module), backend="eager"),
    "a wrapped layer": lambda module: nn.Sequential(nn.DataParallel(module)),
    "wrapped within": lambda module: nn.Sequential(nn.ModuleDict({"a": torch.compile(module)})["a"]),
}


@pytest.mark.filterwarnings("ignore:ε = ")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_modules_are_saved_under_plain_names_and_load(wrapper, images, tmp_path):
    load_model = pytest.importorskip("safetensors.torch").load_model
    inner = Encoder(), Decoder()
    pair = built(*map(WRAPPERS[wrapper], inner))
    outer = nn.Sequential if "wit" in wrapper or "layer" in wrapper else lambda module: module
    assert list(pair.encoder.state_dict()) == list(outer(Encoder()).state_dict())
    parameters = [parameter for module in pair.encoder.modules() for parameter in module.parameters(recurse=False)]
    assert [id(p) for p in pair.encoder_parameters()] == [id(p) for p in parameters]
    unlearned = ux.unlearn(pair, *images, **QUICK)
    unlearned.save_pretrained(tmp_path)
    encoder, decoder = outer(Encoder()), outer(Decoder())
    load_model(encoder, tmp_path / "encoder.safetensors")
    load_model(decoder, tmp_path / "decoder.safetensors")
    assert torch.equal(encoder(images[0]), unlearned.encode(images[0]))
    assert torch.equal(decoder(encoder(images[0])), unlearned.decode(unlearned.encode(images[0])))


@pytest.mark.filterwarnings("ignore:ε = ")
def test_modules_compiled_in_place_unlearn_and_are_saved_under_plain_names(images, tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    encoder, decoder = Encoder(), Decoder()
    for module in (encoder, decoder):
        module.compile(backend="eager")
    pair = built(encoder, decoder)
    ux.unlearn(pair, *images, **QUICK).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "encoder.safetensors")
    assert list(saved) == ["linear.bias", "linear.weight"]


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:ε = ")
def test_a_scripted_decoder_decodes_and_a_scripted_encoder_is_refused_since_copies_cannot_be_trained(images, tmp_path):
    pytest.importorskip("safetensors")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    for encoder in (torch.jit.script(plain), torch.jit.trace(plain, images[0]), nn.Sequential(torch.jit.script(plain))):
        with pytest.raises(UserError, match=r"parts in TorchScript, .*: give the module that it was made from"):
            built(encoder)
    decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
    unlearned = ux.unlearn(built(decoder=torch.jit.script(decoder)), *images, **QUICK)
    latents = unlearned.encode(images[0])
    assert torch.equal(unlearned.decode(latents), decoder(latents))
    unlearned.save_pretrained(tmp_path)
    saved = pytest.importorskip("safetensors.torch").load_file(tmp_path / "decoder.safetensors")
    assert saved.keys() == decoder.state_dict().keys()


class Remembering(nn.Module):
    """A module that stores its last output in the form that ``keep`` gives it."""

    def __init__(self, keep):
        super().__init__()
        self.linear, self.keep = nn.Linear(64, 4), keep

    def forward(self, images):
        self.last = self.keep(self.linear(images.flatten(1)))
        return self.last if isinstance(self.last, torch.Tensor) else self.linear(images.flatten(1))


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: Remembering(lambda latents: latents),
        lambda: Remembering(lambda latents: {"latents": [latents, (latents,)]}),
        lambda: nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 4))),
        lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 4))),
        lambda: nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(64, 4))),
    ],
    ids=["tensor", "nested", "old weight norm", "weight norm", "old spectral norm"],
)
@pytest.mark.filterwarnings("ignore:ε = ", "ignore:.*weight_norm")
@pytest.mark.parametrize("augment", [None, lambda images, draw: images])
def test_encoders_that_keep_a_graph_of_their_last_pass_are_copied(encoder, augment, images, tmp_path):
    pytest.importorskip("safetensors")
    pair = built(encoder())
    pair.encode(images[0]).sum().backward()  # as after training by the user
    latents = pair.encode(images[0])
    copied = copy.deepcopy(pair)
    assert torch.equal(copied.encode(images[0]), latents)
    assert not set(copied.encoder_parameters()) & set(pair.encoder_parameters())
    pair.encode(images[0])
    unlearned = ux.unlearn(pair, *images, **QUICK, augment=augment)
    assert not torch.equal(unlearned.encode(images[0]), latents)
    assert torch.equal(pair.encode(images[0]), latents)
    pair.save_pretrained(tmp_path)
    again = encoder()
    pytest.importorskip("safetensors.torch").load_model(again, tmp_path / "encoder.safetensors")
    torch.testing.assert_close(again.eval()(images[0]), latents)


def test_hooks_of_an_encoder_go_on_working(images):
    encoder = Encoder()
    encoder.register_forward_hook(lambda _, __, output: output * 2)
    encoder.linear.register_forward_pre_hook(lambda _, args: (args[0] / 4,))
    pair = built(encoder)
    latents = 2 * nn.functional.linear(images[0].flatten(1) / 4, encoder.linear.weight, encoder.linear.bias)
    torch.testing.assert_close(pair.encode(images[0]), latents)
    torch.testing.assert_close(copy.deepcopy(pair).encode(images[0]), latents)
