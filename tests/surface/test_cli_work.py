"""The commands that work, on a model and images that are as small as can be."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearn_ext import data, demo, models, pretrain
from unlearn_ext.run import Settings

from .test_cli import call

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, images to forget, images to retain, and an empty folder."""
    folder = tmp_path_factory.mktemp("work")
    diffusers.VQModel(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=2,
        num_vq_embeddings=8, sample_size=8, mid_block_add_attention=False,
    ).save_pretrained(folder / "checkpoint")  # fmt: skip
    rng = np.random.default_rng(0)
    for side, brightest in (("ours", 120), ("theirs", 256)):
        (folder / side).mkdir()
        for index in range(10):
            pixels = rng.integers(0, brightest, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / side / f"{index}.png")
    (folder / "empty").mkdir()
    return folder


def options(place: Path, retain: str = "theirs") -> list[str]:
    return ["--model", str(place / "checkpoint"), "--forget", str(place / "ours"), "--retain", str(place / retain)]


def test_sweep_writes_a_run_and_its_report(place: Path, tmp_path: Path) -> None:
    code, said = call("sweep", *options(place), "--out", str(tmp_path / "run"), "--points", "2", "--steps", "3")
    assert code == 0, said
    assert "boundary-high" in said
    assert "f1 reached" in said
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(list((tmp_path / "run").glob("*/config.json"))) == 4


def test_run_keeps_one_model(place: Path, tmp_path: Path) -> None:
    code, said = call("run", "--epsilon", "0.5", *options(place), "--out", str(tmp_path), "--steps", "3")
    assert code == 0, said
    assert "validation" in said
    assert diffusers.VQModel.from_pretrained(tmp_path / "eps-0.5000", low_cpu_mem_usage=False)


def test_an_epsilon_outside_is_one_warning(place: Path, tmp_path: Path) -> None:
    code, said = call("run", "--epsilon", "99", *options(place), "--out", str(tmp_path), "--steps", "1")
    assert code == 0
    assert said.count("ε = 99 is above") == 1
    assert "UserWarning" not in said


@pytest.mark.parametrize(("retain", "sentence"), [("empty", "holds no image"), ("ours", "in the retain set")])
def test_images_that_cannot_be_used_are_one_sentence(place: Path, tmp_path: Path, retain: str, sentence: str) -> None:
    code, said = call("sweep", *options(place, retain), "--out", str(tmp_path))
    assert code == 1
    assert said.startswith("Error: ")
    assert sentence in said
    assert "Traceback" not in said


def test_classes_are_named_by_their_folders(place: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).symlink_to(place / ("ours" if name == "cat" else "theirs"))
    own = ["--model", str(place / "checkpoint"), "--data-dir", str(tmp_path), "--out", str(tmp_path), "--steps", "1"]
    code, said = call("run", "--epsilon", "0.5", *own, "--forget-classes", "cat")
    assert code == 0, said
    code, said = call("run", "--epsilon", "0.5", *own, "--forget-classes", "cot")
    assert code == 1
    assert "has no class cot; it has cat, dog" in said


def test_broken_images_stop_a_run_unless_they_may_be_skipped(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "theirs", tmp_path / "theirs")
    (tmp_path / "theirs" / "broken.png").write_bytes(b"no picture")
    arguments = ["run", "--epsilon", "0.5", *options(place), "--out", str(tmp_path / "run"), "--steps", "1"]
    arguments[arguments.index("--retain") + 1] = str(tmp_path / "theirs")
    code, said = call(*arguments)
    assert code == 1
    assert "broken.png: its content" in said
    assert not (tmp_path / "run").exists()
    code, said = call(*arguments, "--skip-bad")
    assert code == 0
    assert "1 image cannot be read, left out:" in said


def test_a_model_for_other_images_is_one_sentence(tmp_path: Path) -> None:
    diffusers.VQModel(in_channels=3, block_out_channels=(8,), norm_num_groups=4, sample_size=8).save_pretrained(
        tmp_path
    )
    code, said = call("run", "--epsilon", "0.5", "--model", str(tmp_path), "--data", "mnist")
    assert code == 1
    assert said == "Error: the model takes images of 3 channels; those of mnist have 1."


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every family's small model trains for two steps on a few pictures, into an empty cache, whose place this is."""
    pictures = torch.rand(48, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    few = data.divide("mnist", pictures[:24] / 2, pictures[24:])
    monkeypatch.setattr(data, "load", lambda *_, **__: few)
    for family, recipe in pretrain.RECIPES.items():
        monkeypatch.setitem(pretrain.RECIPES, family, functools.partial(recipe, steps=2))
    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("family", models.FAMILIES)
def test_without_a_checkpoint_every_family_has_a_small_model(quick: Path, tmp_path: Path, family: str) -> None:
    code, said = call("pretrain", "--family", family, "--forget-classes", "7")
    assert code == 0, said
    (folder,) = quick.iterdir()
    assert said.endswith(f"Model: {folder}")
    options = ["--epsilon", "0", "--family", family, "--forget-classes", "7", "--steps", "1", "--out", str(tmp_path)]
    tables = []
    for named in ([], ["--model", str(folder)]):
        code, said = call("run", *options, *named)
        assert code == 0, said
        tables.append(said[said.index("ε = 0 asked") :])
    assert tables[0] == tables[1]
    assert list(quick.iterdir()) == [folder]


@pytest.mark.parametrize("family", models.FAMILIES)
def test_the_demo_shows_every_family(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(demo, "POINTS", 1)
    monkeypatch.setitem(demo.SETTINGS, family, Settings(steps=3))
    code, said = call("demo", "--family", family, "--out", str(tmp_path / "run"))
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["family"] == family
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_folder_that_is_no_model_is_one_sentence(place: Path, tmp_path: Path) -> None:
    code, said = call("run", "--epsilon", "0.5", *options(place), "--model", str(place / "empty"))
    assert code == 1
    assert "Traceback" not in said
