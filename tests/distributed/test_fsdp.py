"""`torchrun … -m unlearn_ext run --fsdp`, and the same for `sweep`: two processes give the result of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from commands import call
from launches import KILLED, called, launched

from unlearn_ext.models import load
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.pareto import ParetoFront

FAMILIES = ["vqgan", "mae", "diffusion"]


def options(place: Path, family: str, out: Path) -> list[str]:
    sources = ["--forget", str(place / "ours"), "--retain", str(place / "theirs"), "--model", str(place / family)]
    return [*sources, "--family", family, "--out", str(out), "--steps", "4", "--batch-size", "8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of each family, and forget and retain images; the number of images is odd."""
    folder = tmp_path_factory.mktemp("work")
    tiny.write_inputs(folder, images=11)
    for family in FAMILIES:
        tiny.brief(family).save_pretrained(folder / family)
    return folder


def folders(place: Path, name: str) -> tuple[Path, Path]:
    return place / "one" / name, place / "two" / name


def latents(family: str, folder: Path) -> torch.Tensor:
    """Return a saved model's latents; weights with zero gradient but for rounding, as biases of keys, may differ."""
    model = load(family, folder)
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return model.encode(*model.inputs(images, CenterCrop(0.5)))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_of_sharded_models_equals_that_of_one_process(place, tmp_path, family):
    typed = ["run", "--epsilon", "0.05"]
    done = called(2, *typed, *options(place, family, tmp_path / "two"), "--fsdp")
    assert done.returncode == 0, done.stderr
    code, said = call(*typed, *options(place, family, tmp_path / "one"))
    assert code == 0, said
    before, one, two = (latents(family, path) for path in (place / family, *folders(tmp_path, "eps-0.0500")))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
    assert (one - before).abs().max() > 1e-2
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_sweep_of_sharded_models_resumes_and_equals_that_of_one_process(place, tmp_path, family, monkeypatch):
    (tmp_path / "killed.py").write_text(KILLED)
    typed = ["sweep", "--points", "1"]
    for kill in (9, 0):
        monkeypatch.setenv("KILL_AFTER", str(kill))
        script = str(tmp_path / "killed.py")
        done = launched(2, script, *typed, *options(place, family, tmp_path / "two"), "--fsdp", "--resume")
        assert (done.returncode == 0) == (kill == 0), done.stderr
    code, said = call(*typed, *options(place, family, tmp_path / "one"))
    assert code == 0, said
    one, two = (ParetoFront.from_csv(path) for path in folders(tmp_path, "front.csv"))
    for mine, its in zip(two, one, strict=True):
        assert (mine.name, mine.steps) == (its.name, its.steps)
        assert mine.values == pytest.approx(its.values, rel=1e-3, abs=1e-5)
    for name in ("evidence.json", "hole.csv", "report.html"):
        assert (tmp_path / "two" / name).stat().st_size


def test_fsdp_needs_torchrun_and_no_option_that_it_does_not_support(place, tmp_path):
    typed = ["run", "--epsilon", "0.05", *options(place, "vqgan", tmp_path / "run"), "--fsdp"]
    code, said = call(*typed)
    assert code == 1
    assert "start them with `torchrun --nproc-per-node N -m unlearn_ext" in said
    for option in (["--compile"], ["--channels-last"], ["--lora", "2"]):
        code, said = call(*typed, *option)
        assert code == 2
        assert f"{option[0]} is not supported with --fsdp" in said
