"""`pretrain` on the user's photographs."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from commands import call

from unlearn_ext import models, pretrain
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.ability import ability

diffusers = pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")

TINY = {"channels": (8,), "latent_channels": 4, "codes": 16, "batch_size": 8, "lr": 1e-2}


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the small VQ-GAN tiny, and keep it in an empty cache."""
    recipe = functools.partial(pretrain.RECIPES["vqgan"], steps=2, **TINY)
    recipe.size = 8
    monkeypatch.setitem(pretrain.RECIPES, "vqgan", recipe)
    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Write eleven grey PGM pictures of stripes for each of two people, and return their folder."""
    rng = np.random.default_rng(0)
    for person in ("a", "b"):
        (tmp_path / "people" / person).mkdir(parents=True)
        for index in range(11):
            stripes = np.where(np.arange(8) % 2, 200, 50) + rng.integers(-20, 20, (12, 8))
            path = tmp_path / "people" / person / f"{index}.pgm"
            Image.fromarray(stripes.astype(np.uint8).T.copy()).save(path)
            assert path.read_bytes().startswith(b"P5")
    return tmp_path / "people"


def test_photographs_become_a_model_that_sweep_takes(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    code, said = call("pretrain", "--data-dir", str(people), "--out", str(out), "--steps", "60")
    assert code == 0, said
    assert f"{people}: 20 grey images to train on, 2 held out" in said
    assert "PSNR in the hole: images trained on" in said
    assert "hardly better" not in said
    assert said.endswith(f"Model: {out}")
    assert not (tmp_path / "cache").exists()
    model = models.load("vqgan", out)
    assert (model.size, model.channels) == (8, 1)
    sources = ["--model", str(out), "--data-dir", str(people), "--forget-classes", "a"]
    code, said = call("run", *sources, "--epsilon", "0.5", "--steps", "1", "--out", str(tmp_path / "run"))
    assert code == 0, said
    assert "PSNR in the hole: images to forget" in said
    whole = ["--task", "reconstruct", "--epsilon", "0.5", "--steps", "1", "--out", str(tmp_path / "whole")]
    code, said = call("run", *sources, *whole)
    assert code == 0, said
    assert "PSNR over the whole image: images to forget" in said


def test_a_model_that_cannot_do_its_task_is_a_warning(people: Path) -> None:
    code, said = call("pretrain", "--data-dir", str(people), "--steps", "1")
    assert code == 0, said
    assert "hardly better than one colour in the hole, for the images trained on and the images held out" in said
    assert "train longer" in said


def test_channels_follow_the_photographs(people: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(people / "a" / "red.png")
    for options, channels in (([], 3), (["--channels", "1"], 1)):
        code, said = call("pretrain", "--data-dir", str(people), *options, "--validation", "0")
        assert code == 0, said
        assert " 23 " in said
        folder = Path(said.partition("Model: ")[2].split()[0])
        assert folder.parent == tmp_path / "cache"
        assert models.load("vqgan", folder).channels == channels


def test_a_model_is_replaced_only_by_force(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = ["pretrain", "--data-dir", str(people), "--out", str(out)]
    assert call(*command)[0] == 0
    code, said = call(*command)
    assert (code, said) == (
        1, f"Error: {out} already contains a model: choose another folder, or give --force to replace it.",
    )  # fmt: skip
    code, said = call(*command, "--force")
    assert code == 0, said
    (out / "mine.txt").write_text("mine")
    code, said = call(*command, "--force")
    assert code == 1
    assert "contains other files than a model of ours" in said
    assert (out / "mine.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_stops_before_the_training(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "train", None)
    (tmp_path / "file").write_text("mine")
    code, said = call("pretrain", "--data-dir", str(people), "--out", str(tmp_path / "file" / "model"))
    assert code == 1
    assert "cannot be written: " in said
    code, said = call("pretrain", "--data-dir", str(people), "--out", str(people / "model"))
    assert code == 1
    assert "the same folder or one contains the other" in said


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--data", "mnist"], 2, "give one of --data and --data-dir"),
        (["--forget-classes", "a"], 2, "leave out --forget-classes"),
        (["--channels", "2"], 2, "must be 1 for grey or 3 for RGB"),
        (["--family", "mae", "--size", "12"], 1, "takes images whose side is a multiple of 8 pixels, not 12."),
    ],
)
def test_wrong_options_are_one_sentence(people: Path, options: list[str], code: int, sentence: str) -> None:
    given, said = call("pretrain", "--data-dir", str(people), *options)
    assert given == code
    assert sentence in said


def test_channels_need_photographs() -> None:
    code, said = call("pretrain", "--channels", "1")
    assert code == 2
    assert "give --data-dir" in said


def test_slow_models_are_measured_on_few_images(
    tiny_images: tuple[torch.Tensor, torch.Tensor], tiny_model: models.I2IModel
) -> None:
    assert ability(tiny_model, tiny_images[0], CenterCrop(0.5)).images == 48
    assert ability(tiny_model, tiny_images[0], CenterCrop(0.5), seconds=0.0).images == 1


def test_the_fill_is_the_best_single_colour(tiny_images: tuple[torch.Tensor, torch.Tensor]) -> None:
    task, images = CenterCrop(0.5), tiny_images[0]
    hole = images[..., 2:6, 2:6]
    psnr = 10 * torch.log10(4 / (hole - hole.mean()).square().mean((1, 2, 3)))
    found = ability(tiny.model("vqgan"), images, task)
    assert found.fill == pytest.approx(psnr.mean().item(), rel=1e-5)
    assert not found.is_clear, "its weights are random"
