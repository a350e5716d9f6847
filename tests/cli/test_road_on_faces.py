"""Two people ask to be forgotten, one after the other, on real faces: every command of the guide, at small size.

The faces are not part of the project: the test is skipped where they are not beside the repository.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import call

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

FACES = Path(__file__).parents[3] / "shared" / "data" / "orl-faces"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FACES.is_dir(), reason="the faces are not beside the repository, in ../shared/data"),
]
SIZE, STEPS = 32, 150  # of the model; a minute on one core


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small model of all faces, the first person's, and the others'."""
    folder = tmp_path_factory.mktemp("faces")
    (folder / "s1").symlink_to(FACES / "s1")
    (folder / "others").mkdir()
    for person in sorted(FACES.glob("s*")):
        if person.name != "s1":
            (folder / "others" / person.name).symlink_to(person)
    code, said = call(
        "pretrain", "--data-dir", str(FACES), "--size", str(SIZE), "--steps", str(STEPS), "--out", str(folder / "model")
    )
    assert code == 0, said
    return folder


def rows(run: Path, name: str) -> list[dict[str, str]]:
    with (run / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_people_are_forgotten_one_after_the_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    quick = ("--validation", "0", "--steps", "40", "--batch-size", "16")
    code, said = call(
        "run", "--forget", "s1=s1", "--epsilon", "s1=12%", "--retain", "others", "--model", "model", "--out",
        "runs/first", *quick,
    )  # fmt: skip
    assert code == 0, said
    assert "Images to forget: 10 used, 0 held out, 0 left out; to retain: 390 used" in said
    code, said = call(
        "run", "--forget", f"s7={FACES / 's7'}", "--epsilon", "s7=12%", "--after", "runs/first", "--out", "runs/second",
        *quick,
    )  # fmt: skip
    assert code == 0, said
    assert "to retain: 380 used, 0 held out, 10 left out" in said
    own, old = rows(place / "runs" / "second", "requests.csv")
    assert (own["request"], old["request"], old["since"], old["held"]) == ("s7", "s1", "first", "trained")
    for row in (own, old):
        f1, epsilon, before = (float(row[name]) for name in ("f1", "epsilon", "f1_unmodified"))
        assert epsilon == pytest.approx(0.12 * before)
        assert 0.99 * epsilon < f1 <= epsilon, row
        assert row["images"] == "10"
        print(f"{row['request']}: f1 {f1:.4f}, ε {epsilon:.4f}, worst {row['worst_f1']}, above {row['above']}")
    (point,) = rows(place / "runs" / "second", "front.csv")
    print(f"f2 {point['f2']}")
    code, said = call("requests", "runs/second")
    assert code == 0, said
    assert "first" in said
    for run in ("runs/first", "runs/second"):
        code, said = call("verify", run)
        assert code == 0, said
    assert "s1" in json.loads((place / "runs" / "second" / "evidence.json").read_text())["requests"][1]["request"]
    code, said = call("export", "runs/second", "exported")
    assert code == 0, said
    assert (place / "exported" / "README.md").is_file()
    code, said = call("report", "runs/second")
    assert code == 0, said
