"""Precision, memory format, compilation and checkpointing change the cost of a step but not its result."""

import copy
import functools

import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext.errors import UserError
from unlearn_ext.models.autoencoder import Autoencoder
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.encoder import Encoder
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings

TASK = CenterCrop(0.5)


@pytest.fixture(params=tiny.FAMILIES)
def member(request):
    """Return a tiny model of each family."""
    return tiny.model(request.param)


def gradients(model, objectives, settings):
    """Return ∇f1 over the forget set and ∇f2 over the retain set, each as one vector."""
    encode, found = Encoder(model, settings, training=True), []
    for objective, side in ((objectives.f1, objectives.forget), (objectives.f2, objectives.retain)):
        model.module.zero_grad()
        objective(encode, side.batch(torch.arange(len(side)), 1)).backward()
        grads = [p.grad for p in model.encoder_parameters()]
        found.append(torch.cat([g.flatten() if g is not None else torch.zeros(0) for g in grads]))
    return found


def moved(model):
    """Return a copy with a changed encoder, so that f2 has a nonzero gradient."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.encoder_parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def compared(member, images, changed, **options):
    """Return pairs of gradients, without and with a change to the model or the settings."""
    plain, settings = Settings(), Settings(**options)
    model = moved(member)
    usual = gradients(model, Objectives.freeze(member, *images, TASK, settings=plain), plain)
    other_member, other = copy.deepcopy(member), copy.deepcopy(model)
    for one in (other_member, other):
        changed(one)
    with_change = gradients(other, Objectives.freeze(other_member, *images, TASK, settings=settings), settings)
    return zip(usual, with_change, strict=True)


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(member, images):
    for usual, checkpointed in compared(member, images, lambda model: model.enable_gradient_checkpointing()):
        torch.testing.assert_close(checkpointed, usual, rtol=1e-5, atol=1e-7)
    kept = {}
    for name in ("usual", "checkpointed"):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            member.encode(*member.inputs(images[0], TASK))
        kept[name] = sum(sizes)
        member.enable_gradient_checkpointing()
    assert kept["checkpointed"] < 0.7 * kept["usual"]


def test_checkpointing_of_custom_modules_is_refused():
    pair = Autoencoder(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2), channels=1, size=2)
    with pytest.raises(UserError, match=r"call torch\.utils\.checkpoint in its forward method"):
        pair.enable_gradient_checkpointing()


def test_channels_last_gives_the_same_gradients(member, images):
    def change(model):
        model.module.to(memory_format=torch.channels_last)

    for usual, channels_last in compared(member, images, change):
        torch.testing.assert_close(channels_last.sort().values, usual.sort().values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_gives_the_same_gradients(member, images, backend, monkeypatch):
    if backend == "inductor" and member.family != "autoencoder":
        pytest.skip("code is generated for one family alone; that every family can be traced is shown without")
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    for usual, compiled in compared(member, images, lambda model: None, compile=True):
        torch.testing.assert_close(compiled, usual, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_gives_nearly_the_same_gradients(member, images, precision):
    for usual, mixed in compared(member, images, lambda model: None, precision=precision):
        assert not torch.equal(mixed, usual)
        assert torch.nn.functional.cosine_similarity(mixed, usual, dim=0) > 0.99


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_epsilon_is_met_in_mixed_precision(model, images, precision):
    settings = Settings(steps=40, batch_size=16, precision=precision)
    objectives = Objectives.freeze(model, *images, TASK, settings=settings)
    original, lost = objectives.evaluate(Encoder(model, settings))
    assert lost == 0
    history = ux.History()
    unlearned = ux.unlearn(model, *images, task=TASK, epsilon=original / 2, settings=settings, history=history)
    f1, f2 = objectives.evaluate(Encoder(unlearned, settings))
    assert f1 == pytest.approx(original / 2, abs=0.02 * original)
    assert f2 < 0.5
    assert all(p.dtype == torch.float32 for p in unlearned.encoder_parameters())
    assert sum(row[-1] for row in history.rows()) <= 3, "steps skipped while the scale settles"


def test_channels_last_and_checkpointing_go_into_the_model_that_comes_out(member, images, tmp_path):
    member.module.to(memory_format=torch.channels_last)
    member.enable_gradient_checkpointing()
    unlearned = ux.unlearn(member, *images, task=TASK, epsilon=0.1, settings=Settings(steps=2, batch_size=16))
    unlearned.save_pretrained(tmp_path)
    loaded = ux.models.load(member.family, tmp_path)
    for p, q in zip(loaded.encoder_parameters(), unlearned.encoder_parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="there is no precision `int8`; known: float32, bfloat16, float16"):
        Settings(precision="int8")
