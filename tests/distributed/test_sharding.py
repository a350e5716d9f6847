"""Models divided among processes: all that a whole model does, a sharded one does with a part of the memory."""

from __future__ import annotations

import copy
import shutil
import warnings
from contextlib import nullcontext

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import nn

import unlearn_ext as ux
from unlearn_ext._utils import distributed
from unlearn_ext.errors import UserError
from unlearn_ext.models import reconstruct
from unlearn_ext.models.autoencoder import Autoencoder
from unlearn_ext.models.latent_diffusion import LatentDiffusion
from unlearn_ext.models.sharding import Sharded, shard, whole
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning import journal as journals
from unlearn_ext.unlearning.earlier import read_earlier
from unlearn_ext.unlearning.encoder import Encoder
from unlearn_ext.unlearning.identity import identity, weights_digest
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.pareto import ParetoFront

pytest.importorskip("diffusers")

TASK = CenterCrop(0.5)
FAMILIES = ["vqgan", "mae", "mage", "autoencoder", "diffusion", "latent-diffusion"]


def slow(families):
    return [pytest.param(family, marks=pytest.mark.slow) for family in families]


class Gained(nn.Module):
    """A layer with a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.tanh() * self.gain


def own(family: str) -> ux.models.I2IModel:
    """Return a small model of a family; "own" is a pair of modules with a scalar, a shared parameter and a buffer."""
    if family == "latent-diffusion":
        from pipelines import inpainting

        return LatentDiffusion(inpainting())
    if family != "own":
        return tiny.model(family)
    torch.manual_seed(0)
    shared = nn.Conv2d(1, 1, 3, padding=1)
    blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), Gained()])
    encoder = nn.Sequential(shared, copy.copy(shared), nn.Conv2d(1, 3, 2, 2), *blocks)
    encoder[1].weight = shared.weight
    return Autoencoder(encoder, nn.Sequential(nn.ConvTranspose2d(3, 1, 2, 2)), channels=1, size=8)


def images(count: int, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sharded_like_whole(family):
    model, expected = own(family), own(family)
    shown = images(5, shape=(model.channels, model.size, model.size))
    about = {"forget": shown[:3], "retain": shown[3:]}, TASK, None, ux.Settings()
    before = identity(model, *about)
    model = shard(model)
    assert isinstance(model, Sharded)
    assert identity(model, *about) == before
    copied, inputs = copy.deepcopy(model), expected.inputs(shown, TASK)
    latents = expected.encode(*inputs)
    latents.square().mean().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # FSDP warns of outputs whose hooks may be lost
        for divided in (model, copied):
            mine = divided.encode(*inputs)
            torch.testing.assert_close(mine, latents)
            mine.square().mean().backward()
            distributed.average(mine.detach().mean(), divided.encoder_parameters())
            check_gradients(divided, expected)
            torch.testing.assert_close(reconstruct(divided, shown, TASK), reconstruct(expected, shown, TASK))
    first = model.encoder_parameters()[0]
    distributed.assign(first, torch.full_like(distributed.whole(first), 7.0))
    assert weights_digest(copied) == before["model"] != weights_digest(model)
    gathered = whole(copied)
    if distributed.is_first():
        assert weights_digest(gathered) == before["model"]
        assert isinstance(gathered, type(expected))
    held = sum(distributed.local(p, p).numel() for p in model.module.parameters())
    return held / sum(p.numel() for p in expected.module.parameters())


def check_gradients(divided, expected):
    for mine, its in zip(divided.module.parameters(), expected.module.parameters(), strict=True):
        assert mine.requires_grad == its.requires_grad
        assert (mine.grad is None) == (its.grad is None)
        if its.grad is not None:
            torch.testing.assert_close(distributed.whole(mine.grad), its.grad)


@pytest.mark.parametrize("family", ["own", *FAMILIES[:3], *slow(FAMILIES[3:])])
def test_a_sharded_model_equals_the_whole_one(processes, family):
    shares = processes.run(2, sharded_like_whole, family)
    assert sum(shares) == pytest.approx(1, abs=0.02)  # a scalar is in both
    assert max(shares) < (0.7 if family in FAMILIES else 0.8)


def evaluated(counts):
    """Return f1 and f2 of sets of several sizes, in minibatches of four; with several processes, of a sharded model."""
    model, values = tiny.model("diffusion"), []
    model = shard(model) if dist.is_initialized() else model
    for count in counts:
        sides = images(count), images(2 * count + 1, 1)
        objectives = Objectives.freeze(model, *sides, TASK, settings=ux.Settings(batch_size=1))
        values.append(objectives.evaluate(Encoder(model, objectives.settings)))
    return values


def test_processes_with_unequal_parts_encode_equally_often(processes):
    """Encoding is collective: a process that has fewer images, or none, must not leave the others waiting."""
    counts = (1, 8)  # parts of 1 and 0, and of 2 and 1 images; of 4 and 4, and of 9 and 8
    torch.testing.assert_close(processes.run(2, evaluated, counts), [evaluated(counts)] * 2)


SETTINGS = {
    "sharpness": {"sharpness": 0.05},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "checkpointing": {},
}


def unlearned(name, folder, sharded):
    """Return the encoder of a model that two runs unlearned, the second of which continues the first, and its steps."""
    model = shard(tiny.model("vqgan")) if sharded else tiny.model("vqgan")
    if name == "checkpointing":
        model.enable_gradient_checkpointing()
    given = {"retain": images(9, 1), "task": TASK, "settings": ux.Settings(steps=2, batch_size=4, **SETTINGS[name])}
    first, history = {"ana": images(7) / 2}, ux.History()
    ux.unlearn(model, first, epsilon={"ana": "60%"}, out=folder / "first", **given)
    if dist.is_initialized():
        dist.barrier()  # the first process has written the run
    made = ux.unlearn(
        model, {"ben": images(5, 2), **first}, epsilon={"ben": "70%"}, out=folder / "second", history=history,
        after=read_earlier(folder / "first"), **given,
    )  # fmt: skip
    return [distributed.whole(parameter) for parameter in made.encoder_parameters()], history.since(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_runs_one_after_the_other_with_several_requests_equal_those_of_whole_models(processes, name, tmp_path):
    usual, (mine, others) = (
        processes.run(2, unlearned, name, tmp_path / str(sharded), sharded)[slice(1 + sharded)]
        for sharded in (False, True)
    )
    torch.testing.assert_close(mine, others, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close([mine], usual, rtol=1e-4, atol=1e-5, equal_nan=True)  # skipped steps have no λ


class Ended(BaseException):
    """Raised in place of a kill."""


def swept(family, folder, end_after=None):
    """Sweep with a journal at every step, or continue a sweep; end it after some steps."""
    journals.SECONDS, checkpoint, left = 0.0, journals.Journal.checkpoint, [end_after]

    def ending(self, state):
        checkpoint(self, state)
        left[0] = left[0] and left[0] - 1
        if left[0] == 0:
            raise Ended

    journals.Journal.checkpoint = ending
    model = shard(tiny.brief(family)) if dist.is_initialized() else tiny.brief(family)
    try:
        with nullcontext() if end_after is None else pytest.raises(Ended):
            front = ux.sweep(
                model, images(5) / 2, images(5, 1), task=TASK, points=1, held_out=(images(3, 2) / 2, images(2, 3)),
                out=folder, resume=True, settings=ux.Settings(steps=3, batch_size=4),
            )  # fmt: skip
            assert front.at(front.points[2].f1).f1 == pytest.approx(front.points[2].f1, abs=0.01)
    finally:
        journals.SECONDS, journals.Journal.checkpoint = 60.0, checkpoint


def check_front(folder, other):
    """Check that two sweeps have the same points up to rounding."""
    for mine, its in zip(*(ParetoFront.from_csv(place / "front.csv") for place in (folder, other)), strict=True):
        assert (mine.name, mine.steps) == (its.name, its.steps)
        values, expected = ([*p.values, p.f1_validation, p.f2_validation] for p in (mine, its))
        assert values == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_an_interrupted_sweep_equals_that_of_one_process(processes, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for end_after in (8, None):
        processes.run(2, swept, "vqgan", two, end_after=end_after)
    swept("vqgan", one)
    check_front(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vqgan", "mae", "diffusion"])
def test_sweeps_with_and_without_interruption_are_the_same_to_the_bit(processes, family, tmp_path):
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    processes.run(2, swept, family, two)
    processes.run(2, swept, family, resumed, end_after=8)
    shutil.copytree(resumed, tmp_path / "elsewhere")
    processes.run(2, swept, family, resumed)
    swept(family, one)
    check_front(two, one)
    files = [path.relative_to(two) for path in two.glob("*/*.safetensors")]
    assert len(files) == 6
    for path in (*files, "history.csv", "samples.npz"):
        assert (resumed / path).read_bytes() == (two / path).read_bytes(), path
    processes.run(2, swept, family, resumed)  # finished: its models are loaded, and divided again for other ε
    swept(family, tmp_path / "elsewhere")  # with a whole model
    check_front(tmp_path / "elsewhere", one)


def test_a_whole_model_needs_a_group():
    with pytest.raises(UserError, match=r"torch\.distributed is not initialised: start the program with torchrun"):
        shard(tiny.model("vqgan"))


def refused():
    for option, said in (({"compile": True}, "cannot be compiled"), ({"lora": 2}, "cannot get an adapter")):
        settings = ux.Settings(**option)
        with pytest.raises(UserError, match=f"divided among processes {said}"):
            ux.unlearn(shard(tiny.model("vqgan")), images(2), images(2), task=TASK, epsilon=0.1, settings=settings)
    model = tiny.model("vqgan")
    model.module.to(memory_format=torch.channels_last)
    with pytest.raises(UserError, match="leave out the memory format channels-last"):
        shard(model)


def test_compilation_adapters_and_other_memory_formats_are_refused(processes):
    processes.run(2, refused)
