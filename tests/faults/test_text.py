"""File and class names that are not UTF-8 are escaped and read back, or refused before training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL.Image")

import tiny
from PIL import Image
from typer.testing import CliRunner

import unlearn_ext as ux
from unlearn_ext import reproduction
from unlearn_ext._utils.atomic_io import write_table, write_text
from unlearn_ext._utils.cache import writable_cache_folder
from unlearn_ext.cli import sources_file
from unlearn_ext.cli.app import app
from unlearn_ext.cli.options import Sources
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.settings import Settings

NAMES = [
    os.fsdecode(name) for name in (b"caf\xe9", b"\xff\xfe", b"\x93\xfa\x96\x7b", b"cut \xe2\x82", b"\x80, \"'\\\n")
]
WHOLE = ["café", "日本", "\\udce9", "a\\b", "ε → 0", "\N{NO-BREAK SPACE}"]


@pytest.mark.parametrize("name", [*NAMES, *WHOLE])
def test_json_restores_every_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.json"
    write_text(path, json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": name}


def test_text_that_can_be_encoded_is_written_unchanged(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "".join(WHOLE))
    assert (tmp_path / "a").read_text(encoding="utf-8") == "".join(WHOLE)
    write_table(tmp_path / "b.csv", ["ε", NAMES[0]], [[1.5, "日本"]])
    assert (tmp_path / "b.csv").read_text(encoding="utf-8") == "ε,caf\\udce9\n1.5,日本\n"


def made(folder: Path) -> Path:
    """Create a folder; skip the test if the file system does not accept the name."""
    try:
        folder.mkdir(parents=True)
    except OSError:
        pytest.skip("the file system takes no such names")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_saved_sources_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    sources_file.keep(Sources(data_dir=Path(name), forget_classes=f"{name},dog", split=name), tmp_path)
    kept = sources_file.kept(tmp_path)
    assert Path(kept.data_dir).samefile(tmp_path / name)
    assert (kept.forget_classes, kept.split) == (f"{name},dog", name)


def draw(folder: Path, brightest: int, suffix: str = "") -> None:
    rng = np.random.default_rng(brightest)
    for index in range(8):
        pixels = rng.integers(0, brightest, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}{suffix}.png", format="PNG")


def test_a_sweep_of_such_classes_is_reported_and_judged(tmp_path: Path) -> None:
    tiny.model("vqgan").save_pretrained(tmp_path / "checkpoint")
    forgotten = " ".join(NAMES[:4])
    draw(made(tmp_path / "photos" / forgotten), 120, NAMES[0])
    draw(made(tmp_path / "photos" / "others"), 256)
    sources = ["--model", "checkpoint", "--data-dir", "photos", "--forget-classes", forgotten]
    at = str(tmp_path)
    sources = [part.replace("checkpoint", f"{at}/checkpoint").replace("photos", f"{at}/photos") for part in sources]
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["sweep", *sources, "--points", "1", "--steps", "2", "--out", str(run)])
    assert done.exit_code == 0, done.output
    dataset = f"photos, forgetting {forgotten}"
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["dataset"] == dataset
    assert "forgetting caf\\udce9 \\udcff\\udcfe" in (run / "report.html").read_text(encoding="utf-8")
    judged = CliRunner().invoke(app, ["evaluate", str(run)])
    assert "need at least 8 images" in judged.output  # so it found the model, the classes and their images


PIXELS = torch.rand(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def swept(folder: Path) -> None:
    given = {"task": CenterCrop(0.5), "points": 1, "settings": Settings(steps=1)}
    ux.sweep(tiny.model("vqgan"), *PIXELS, out=folder, **given)


def cached(folder: Path) -> None:
    os.environ["UNLEARN_EXT_CACHE"] = str(folder)
    writable_cache_folder()


def loaded(folder: Path) -> None:
    tiny.model("vqgan").save_pretrained(folder)
    ux.models.load("vqgan", folder)


REFUSED: dict[str, Callable[[Path], Any]] = {
    "sweep": swept,
    "reproduce": lambda folder: reproduction.reproduce(folder, plan=reproduction.QUICK),
    "cache": cached,
    "model": loaded,
}


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_a_folder_that_models_could_not_be_loaded_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Path], Any], name: str
) -> None:
    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path / "cache"))
    folder = made(tmp_path / name)
    with pytest.raises(UserError, match="is not UTF-8, so models could not be loaded from it: rename it or choose"):
        call(folder)
    assert call is loaded or not list(folder.iterdir())


@pytest.mark.parametrize("command", [["run", "--epsilon", "0.5"], ["sweep", "--points", "1"], ["demo"]])
def test_a_command_refuses_it_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for name in ("models.load", "data.load"):
        monkeypatch.setattr(f"unlearn_ext.{name}", None)
    done = CliRunner(charset="utf-8").invoke(app, [*command, "--out", str(tmp_path / NAMES[0])])
    assert done.exit_code == 1
    assert "is not UTF-8, so models could not be loaded from it" in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())
