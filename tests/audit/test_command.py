"""The command `audit`, on a tiny run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import tiny

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")

from commands import call

from unlearn_ext.audit import AUDITS, decoder, relearning


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    tiny.write_inputs(place, 20)
    sources = ("--forget", f"{place}/ours", "--retain", f"{place}/theirs", "--model", f"{place}/checkpoint")
    code, said = call("sweep", *sources, "--out", f"{place}/run", "--points", "1", "--steps", "2")
    assert code == 0, said
    return place / "run"


def test_the_numbers_are_printed_and_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "STEPS", 1)
    monkeypatch.setattr(relearning, "STEPS", (1,))
    canaries = run.parent / "canaries"
    canaries.mkdir()
    (canaries / "in").symlink_to(run.parent / "ours")
    (canaries / "out").symlink_to(run.parent / "theirs")
    options = ("--point", "most-forgotten", "--canaries", str(canaries), "--retrained", str(run.parent / "checkpoint"))
    code, said = call("audit", str(run), *options)
    assert code == 0, said
    for words in (
        *(f"{each.name}: forgotten / retained" for each in AUDITS),
        "retrained: not run: a",
        "4 images to measure on",
    ):
        assert words in said
    with (run / "audit.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["point", "audit", "measure", "forget", "retain", "chance", "note"]
    assert {row["point"] for row in rows} == {"unmodified", "retrained", "most-forgotten"}
    assert [row["measure"] for row in rows if row["audit"] == "canaries"] == ["mean exposure in bits"] * 3


def test_what_cannot_be_audited_is_one_sentence(run: Path, tmp_path: Path) -> None:
    code, said = call("audit", str(run), "--point", "eps-9")
    assert (code, said.count("Error:")) == (1, 1)
    assert "has no point `eps-9`" in said
    code, said = call("audit", str(tmp_path))
    assert code == 1
    assert "is not a finished run" in said
