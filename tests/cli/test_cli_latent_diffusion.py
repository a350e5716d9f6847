"""Family latent-diffusion through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call

diffusers = pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")
import pipelines  # noqa: E402

from unlearn_ext.models import latent_diffusion  # noqa: E402


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pictures in two steps."""
    monkeypatch.setattr(latent_diffusion, "SAMPLING_STEPS", 2)


MAKERS = {"inpainting": pipelines.inpainting, "pix2pix": pipelines.pix2pix}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pipelines, and with images of which three have prompts of their own."""
    folder = tmp_path_factory.mktemp("latent")
    for name, make in MAKERS.items():
        make().save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    for side in ("ours", "theirs"):
        (folder / side).mkdir()
        for number in range(6):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / side / f"{number}.png")
    for number in range(3):
        (folder / "ours" / f"{number}.txt").write_text(f"a lion {number}")
    return folder


def options(place: Path, name: str = "inpainting") -> list[str]:
    folders = ["--forget", str(place / "ours"), "--retain", str(place / "theirs"), "--model", str(place / name)]
    return [*folders, "--steps", "2", "--batch-size", "3"]


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_is_verified_and_exported_and_loads_in_its_pipeline_class(place: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    code, said = call("run", "--epsilon", "60%", *options(place, name), "--prompt", "a photo", "--out", str(out))
    assert code == 0, said
    assert "latent-diffusion: " in said
    assert "Prompts: 3 images have their own, 9 have 'a photo'." in said
    assert json.loads((out / "sources.json").read_text())["prompt"] == "a photo"
    code, said = call("verify", str(out))
    assert code == 0, said
    assert said.count("computed again, the same bits") == 2
    code, said = call("export", str(out), str(tmp_path / "exported"))
    assert code == 0, said
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "exported")
    assert type(loaded) is type(MAKERS[name]())
    before = type(loaded).from_pretrained(place / name)
    assert all(torch.equal(a, b) for a, b in zip(loaded.vae.parameters(), before.vae.parameters(), strict=True))
    changed = [
        key for key, value in loaded.unet.state_dict().items() if not torch.equal(value, before.unet.state_dict()[key])
    ]
    assert changed
    assert all(key.startswith(("down_blocks.", "mid_block.")) for key in changed)
    assert "DiffusionPipeline.from_pretrained" in (tmp_path / "exported" / "README.md").read_text()


def test_prompts_that_changed_since_the_run_are_refused(place: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "run", place / "ours" / "0.txt"
    code, said = call("run", "--epsilon", "60%", *options(place), "--out", str(out), "--pictures", "none")
    assert code == 0, said
    before = text.read_text()
    try:
        text.unlink()
        code, said = call("verify", str(out))
        assert code == 0, said
        assert "f1 and f2 were not computed again, without all prompts as they were: 1." in said
        more = ["--after", str(out), "--forget", str(place / "theirs"), "--out", str(tmp_path / "more")]
        for typed in (["audit", str(out)], ["run", "--epsilon", "60%", *more]):
            code, said = call(*typed)
            assert code == 1
            assert f"1 image has another prompt than in {out}" in said
    finally:
        text.write_text(before)


@pytest.mark.slow
def test_a_sweep_with_its_dial_and_its_report(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said = call("sweep", "--points", "1", *options(place), "--out", str(out))
    assert code == 0, said
    code, said = call("dial", str(out), "--epsilon", "55%")
    assert code == 0, said
    code, said = call("report", str(out))
    assert code == 0, said
    assert (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--augment", "flip"], "images have prompts of their own, but augmented images cannot be recognised"),
        (["--task", "reconstruct"], "task reconstruct hides nothing, but family latent-diffusion only fills in"),
    ],
)
def test_what_the_model_cannot_do_is_one_sentence(place: Path, tmp_path: Path, more: list[str], sentence: str) -> None:
    code, said = call("run", "--epsilon", "60%", *options(place), "--out", str(tmp_path / "run"), *more)
    assert code == 1
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--prompt", "a photo"], "--prompt is for --family latent-diffusion; vqgan takes no prompts"),
        (["--prompt-column", "text"], "--prompt-column is for --family latent-diffusion"),
        (["--prompt-column", "text", "--family", "latent-diffusion"], "names a column of --dataset: give both"),
    ],
)
def test_prompts_where_there_are_none_are_wrong_usage(typed: list[str], sentence: str) -> None:
    code, said = call("run", "--epsilon", "0.5", *typed)
    assert code == 2
    assert sentence in " ".join(said.replace("│", " ").split())


def test_without_a_checkpoint_it_is_said_that_one_is_needed(tmp_path: Path) -> None:
    for command in (["run", "--epsilon", "0.5"], ["demo"], ["pretrain"]):
        code, said = call(*command, "--family", "latent-diffusion")
        assert code == 1
        assert "family latent-diffusion has no small model, so it needs --model, a checkpoint" in said
