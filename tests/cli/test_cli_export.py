"""`export`: one model of a run, with its card."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import tiny
from commands import call

from unlearn_ext._utils.atomic_io import save_folder
from unlearn_ext.unlearning.recommend import recommend
from unlearn_ext.unlearning.run_folder import read_run

diffusers = pytest.importorskip("diffusers")
hub = pytest.importorskip("huggingface_hub")

REQUESTS = (
    "point,request,epsilon,f1_unmodified,f1,f1_validation,images,worst_f1,worst_file,above,held,since,held_out,left_out"
)


@pytest.fixture
def run(run_folder: Path) -> Path:
    """Return a made-up run of one request, Ann, with all models but one."""
    for name in ("most-forgotten", "eps-0.3000", "eps-0.6000", "least-forgotten"):
        save_folder(run_folder / name, tiny.model("vqgan").save_pretrained, replace=True)
    rows = [f"eps-0.{i}000,Ann,0.{i},1.32,0.{i}01,0.31,30,0.4,ann/7.png,3,trained,,0,0" for i in (3, 6)]
    (run_folder / "requests.csv").write_text("\n".join([REQUESTS, *rows]), encoding="utf-8")
    return run_folder


def test_a_model_is_exported_with_its_card(run: Path, tmp_path: Path) -> None:
    (run / "eps-0.3000" / "notes.txt").write_text("mine")
    out = tmp_path / "out"
    code, said = call("export", str(run), str(out), "--point", "eps-0.3000")
    assert code == 0, said
    assert said.endswith(f"Model: {out}")
    assert diffusers.VQModel.from_pretrained(out, low_cpu_mem_usage=False)
    weights = "diffusion_pytorch_model.safetensors"
    assert (out / weights).read_bytes() == (run / "eps-0.3000" / weights).read_bytes()
    assert not (out / "notes.txt").exists()
    card = hub.ModelCard.load(out / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.license == "unknown"
    assert "machine-unlearning" in card.data.tags
    with (run / "front.csv").open(newline="", encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["name"] == "eps-0.3000")
    for words in (
        "ε asked | 0.3000 (23 % of",
        f"{float(row['f1']):.4f}",
        f"{float(row['f2']):.5f}",
        "no proof of deletion",
    ):
        assert words in card.text
    assert "| 1 | 30 | 0.3 | 1.32 | 0.301 | 0.4 | 3 |" in card.text


def test_a_card_names_nobody_unless_asked(run: Path, tmp_path: Path) -> None:
    metrics = (run / "metrics.json").read_text().replace('"mnist"', '"photos, forgetting Ann"')
    (run / "metrics.json").write_text(metrics)
    for options, expected in (([], False), (["--names", "--force"], True)):
        code, said = call("export", str(run), str(tmp_path / "out"), "--point", "eps-0.3000", *options)
        assert code == 0, said
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert ("Ann" in card) is expected
        assert "ann/7.png" not in card


def test_without_a_name_the_recommended_model_is_exported(run: Path, tmp_path: Path) -> None:
    (best, _, reason), out = recommend(read_run(run)), tmp_path / "out"
    assert best != "eps-0.9000"
    code, said = call("export", str(run), str(out))
    assert code == 0, said
    assert f"Recommended: {best}. {reason}" in said
    assert (out / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--point", "eps-0.3333"], "there is no model eps-0.3333 in {run}; there are most-forgotten, eps-0.3000,"),
        (["--point", "eps-0.9000"], "{run}/eps-0.9000 contains no model that a run wrote."),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(
    run: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    code, said = call("export", str(run), str(tmp_path / "out"), *arguments)
    assert code == 1
    assert sentence.format(run=run) in said
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_without_force(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["export", str(run), str(out), "--point", "eps-0.3000"]
    assert call(*command)[0] == 0
    code, said = call(*command)
    assert code == 1
    assert f"{out} already contains a model" in said
    (out / "notes.txt").write_text("mine")
    code, said = call(*command, "--force")
    assert code == 1
    assert "contains other files than a model of ours" in said
    assert (out / "notes.txt").read_text() == "mine"
    for place in (run, run / "eps-0.6000", run.parent):
        code, said = call("export", str(run), str(place), "--point", "eps-0.3000", "--force")
        assert code == 1
        assert "are the same folder or one contains the other" in said
