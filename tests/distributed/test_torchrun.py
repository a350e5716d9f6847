"""`torchrun … -m unlearn_ext`: two processes give the result of one, and only the first prints and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from launches import KILLED, called, errors, launched

import unlearn_ext as ux
from unlearn_ext._utils import distributed
from unlearn_ext.errors import UserError
from unlearn_ext.unlearning.pareto import ParetoFront


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint and forget and retain images; the number of training images is odd."""
    diffusers = pytest.importorskip("diffusers")
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("typer")
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    diffusers.VQModel(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=2,
        num_vq_embeddings=8, sample_size=8, mid_block_add_attention=False,
    ).save_pretrained(folder / "checkpoint")  # fmt: skip
    rng = np.random.default_rng(0)
    for side, brightest in (("ours", 120), ("theirs", 256)):
        (folder / side).mkdir()
        for index in range(11):
            pixels = rng.integers(0, brightest, (8, 8), dtype=np.uint8)
            image.fromarray(pixels).save(folder / side / f"{index}.png")
    return folder


def options(place: Path, out: Path) -> list[str]:
    sources = ["--model", str(place / "checkpoint"), "--forget", str(place / "ours"), "--retain", str(place / "theirs")]
    return ["run", "--epsilon", "0.05", *sources, "--out", str(out), "--steps", "6"]


def weights(folder: Path) -> list[torch.Tensor]:
    return ux.models.load("vqgan", folder / "eps-0.0500").encoder_parameters()


@pytest.mark.slow
def test_two_processes_unlearn_like_one(place, tmp_path):
    said = {}
    for processes in (1, 2):
        done = called(processes, *options(place, tmp_path / str(processes)))
        assert done.returncode == 0, done.stderr
        said[processes] = done.stdout
    one, two = (weights(tmp_path / str(processes)) for processes in (1, 2))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    before = ux.models.load("vqgan", place / "checkpoint").encoder_parameters()
    assert max((a - b).abs().max() for a, b in zip(one, before, strict=True)) > 1e-3
    assert said[2].count("validation") == said[1].count("validation") == 1
    assert not list(tmp_path.rglob("*.part"))


def test_an_error_ends_all_processes_and_is_printed_once(place, tmp_path):
    arguments = options(place, tmp_path)
    arguments[arguments.index("--retain") + 1] = str(place / "nowhere")
    done = called(2, *arguments)
    assert done.returncode == 1
    (said,) = errors(done)
    assert said.startswith("Error: there is no folder")


def sweep_options(place: Path, out: Path) -> list[str]:
    return ["sweep", *options(place, out)[3:], "--points", "1", "--batch-size", "8"]


@pytest.fixture(scope="module")
def swept(place, tmp_path_factory) -> tuple[Path, str]:
    """Sweep with two processes; return the run folder and the output."""
    out = tmp_path_factory.mktemp("swept")
    done = called(2, *sweep_options(place, out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_two_processes_sweep_like_one(place, swept, tmp_path):
    done = called(1, *sweep_options(place, tmp_path))
    assert done.returncode == 0, done.stderr
    for said in (done.stdout, swept[1]):
        assert said.count("│ most-forgotten ") == 1
    for one, two in zip(*(ParetoFront.from_csv(out / "front.csv") for out in (tmp_path, swept[0])), strict=True):
        assert two.values == pytest.approx(one.values, rel=1e-2, abs=1e-5)
        assert two.steps == one.steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("swapped", "given", "sentence"),
    [
        (False, (), "is the result of a finished run"),
        (True, ("--resume",), "that differs in: forget, retain, forget_validation"),
    ],
)
def test_processes_refuse_a_finished_run_and_print_one_error(place, swept, swapped, given, sentence):
    arguments = sweep_options(place, swept[0])
    if swapped:  # detected only after the images are read
        ours, theirs = (arguments.index(option) + 1 for option in ("--forget", "--retain"))
        arguments[ours], arguments[theirs] = arguments[theirs], arguments[ours]
    done = called(2, *arguments, *given)
    assert done.returncode == 1
    (said,) = errors(done)
    assert sentence in said


@pytest.mark.slow
def test_killed_processes_resume_together(place, swept, tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text(KILLED)
    for kill in (14, 0):
        monkeypatch.setenv("KILL_AFTER", str(kill))
        done = launched(2, str(tmp_path / "killed.py"), *sweep_options(place, tmp_path / "run"), "--resume")
        assert (done.returncode == 0) == (kill == 0), done.stderr
    paths = [path.relative_to(swept[0]) for path in swept[0].glob("*/*.safetensors")]
    assert len(paths) == 6
    for path in ("history.csv", "samples.npz", *paths):
        assert (tmp_path / "run" / path).read_bytes() == (swept[0] / path).read_bytes(), path


LEAVES = """
from pathlib import Path
from unlearn_ext._utils import distributed
with distributed.joined():
    import torch.distributed.nn.functional
names = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
print(*(name for name in names if "gloo" in name))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """A thread that runs while the interpreter exits sometimes aborts the process."""
    (tmp_path / "leaves.py").write_text(LEAVES)
    done = launched(2, str(tmp_path / "leaves.py"))
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def share_of(images):
    parameter = torch.ones(2, requires_grad=True)
    index, weight = distributed.share(torch.arange(images))
    loss = (parameter * torch.arange(9.0)[index, None]).mean() * weight
    loss.backward()
    return distributed.average(loss.detach(), [parameter]).item(), parameter.grad.tolist()


def test_uneven_shares_weigh_by_their_images(processes):
    assert processes.run(2, share_of, 9) == [(4.0, [2.0, 2.0])] * 2
    assert share_of(9) == (4.0, [2.0, 2.0])


def too_small():
    with pytest.raises(UserError, match="a minibatch of 1 images cannot be divided among 2 processes"):
        share_of(1)


def test_more_processes_than_images(processes):
    processes.run(2, too_small)


def failing():
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError if distributed.is_first() else UserError, match="no"):
        distributed.from_first(fail)
    return distributed.from_first(lambda: 3)


def test_what_the_first_process_raises_ends_all(processes):
    assert processes.run(2, failing) == [3, 3]
    assert distributed.from_first(lambda: 3) == 3


def added_up():
    return distributed.total(float(torch.distributed.get_rank() + 1)), distributed.part(torch.arange(1)).tolist()


def test_sums_are_over_all_processes_and_parts_may_be_empty(processes):
    assert processes.run(2, added_up) == [(3.0, [0]), (3.0, [])]
    assert distributed.total(2.0) == 2.0
