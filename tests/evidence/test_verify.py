"""`verify` finds every changed byte, and names what changed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("jinja2")

import evidenced

from unlearn_ext import UserError
from unlearn_ext._utils.file_hash import file_sha256
from unlearn_ext.evidence import EVIDENCE, PAGE, write_evidence
from unlearn_ext.evidence.checks import verify
from unlearn_ext.evidence.hashing import digest_of
from unlearn_ext.evidence.lines import CONTRADICTS, HOLDS, NOT_AT_HAND, NOTE, Line
from unlearn_ext.evidence.places import find_image
from unlearn_ext.evidence.record import text_of


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run and its evidence; copy it before changing it."""
    place = tmp_path_factory.mktemp("written")
    run, before = evidenced.write_run(place)
    evidenced.write_audit(run)
    write_evidence(run, before)
    return place


@pytest.fixture
def place(written: Path, tmp_path: Path) -> Path:
    """Return a copy whose sources.json names the copy; its own hash is recorded again."""
    place = Path(shutil.copytree(written, tmp_path / "place"))
    sources = place / "run" / "sources.json"
    sources.write_text(sources.read_text().replace(str(written), str(place)))
    change(place / "run", lambda evidence: evidence["tables"].update({"sources.json": file_sha256(sources)}))
    return place


@pytest.fixture
def run(place: Path) -> Path:
    return place / "run"


def change(run: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Change evidence.json and its page as a forger would, with a new digest."""
    from unlearn_ext.evidence.page import render

    evidence = json.loads((run / EVIDENCE).read_bytes())
    how(evidence)
    evidence["sha256"] = digest_of(evidence)
    (run / EVIDENCE).write_text(text_of(evidence), encoding="utf-8")
    (run / PAGE).write_text(render(run, evidence), encoding="utf-8")


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def of(lines: list[Line], status: str) -> list[str]:
    return [line.text for line in lines if line.status == status]


def test_nothing_contradicts_an_untouched_run(run: Path) -> None:
    lines = list(verify(run))
    assert of(lines, CONTRADICTS) == []
    assert of(lines, NOTE) == []
    assert of(lines, NOT_AT_HAND) == []
    same = [text for text in of(lines, HOLDS) if text.endswith("computed again, the same bits.")]
    assert [text.partition(":")[0] for text in same] == ["model before", f"model {evidenced.POINT}"]
    assert "f1 of the worst image of bob" in same[1]


FILES = {
    "a model": (f"run/{evidenced.POINT}/diffusion_pytorch_model.safetensors",
                f"model {evidenced.POINT}: diffusion_pytorch_model.safetensors was changed."),
    "a configuration": (f"run/{evidenced.POINT}/config.json", f"model {evidenced.POINT}: config.json was changed."),
    "the model before": ("checkpoint/diffusion_pytorch_model.safetensors",
                         "model before, checkpoint: diffusion_pytorch_model.safetensors was changed."),
    "an image to forget": ("photos/alice/3.png", "images to forget, request alice: photos/alice/3.png was changed."),
    "a held-out image": ("photos/bob/6.png", "images to forget, request bob: photos/bob/6.png was changed."),
    "an image to retain": ("theirs/0.png", "images to retain: theirs/0.png was changed."),
    "front.csv": ("run/front.csv", "front.csv was changed."),
    "requests.csv": ("run/requests.csv", "requests.csv was changed."),
    "images.csv": ("run/images.csv", "images.csv was changed."),
    "metrics.json": ("run/metrics.json", "metrics.json was changed."),
    "audit.csv": ("run/audit.csv", "audit.csv was changed."),
    "the page": ("run/evidence.html", "evidence.html is not the page of this evidence.json."),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_one_changed_byte_is_named(place: Path, what: str) -> None:
    name, text = FILES[what]
    flip(place / name)
    assert of(list(verify(place / "run")), CONTRADICTS) == [text]


def test_every_changed_byte_of_the_evidence_is_found(run: Path) -> None:
    path = run / EVIDENCE
    whole = path.read_bytes()
    places = {0, len(whole) - 1, whole.index(b'\n "request"'), *random.Random(0).sample(range(len(whole)), 60)}
    for position in places:
        content = bytearray(whole)
        content[position] ^= 1
        path.write_bytes(content)
        try:
            lines = verify(run)
            found = next((line.text for line in lines if line.status == CONTRADICTS), None)
        except UserError as error:
            found = str(error)
        assert found, whole[position - 20 : position + 20]
        assert EVIDENCE in found


def test_a_byte_of_white_space_is_found_too(run: Path) -> None:
    path = run / EVIDENCE
    path.write_bytes(path.read_bytes().replace(b"\n ", b"\n\t", 1))
    assert of(list(verify(run)), CONTRADICTS) == [
        "evidence.json was changed: the same content, but not as it was written."
    ]


def test_a_forger_who_renews_the_digest_is_contradicted_by_tables_and_numbers(run: Path) -> None:
    def how(evidence: dict[str, Any]) -> None:
        evidence["requests"][1]["f1"] = evidence["requests"][1]["epsilon"]

    change(run, how)
    first, second = of(list(verify(run)), CONTRADICTS)
    assert first == "evidence.json states other requests than the tables contain."
    assert second.startswith(f"model {evidenced.POINT}: f1 of bob is ")


def test_a_file_added_to_or_missing_from_a_model(run: Path) -> None:
    (run / evidenced.POINT / "config.json").rename(run / evidenced.POINT / "other.json")
    assert of(list(verify(run)), CONTRADICTS) == [
        f"model {evidenced.POINT}: config.json is missing.", f"model {evidenced.POINT}: other.json was added.",
    ]  # fmt: skip


def test_images_that_were_destroyed_are_not_at_hand_and_f2_is_still_computed(place: Path) -> None:
    for folder in ("photos/alice", "photos/bob"):
        shutil.rmtree(place / folder)
    (place / "run/images.csv").unlink()
    lines = list(verify(place / "run"))
    assert of(lines, CONTRADICTS) == []
    missing = of(lines, NOT_AT_HAND)
    assert missing[0] == "images.csv is not in the folder."
    assert missing[1].startswith("images to forget, request alice: 7 of 7: photos/alice/3.png, ")
    assert "f1 of request alice was not computed again, without all its images as they were." in missing
    (f2,) = (text for text in of(lines, HOLDS) if text.startswith(f"model {evidenced.POINT}: f2 = "))
    assert f2.endswith("the same bits.")


def test_one_request_destroyed(place: Path) -> None:
    shutil.rmtree(place / "photos/alice")
    lines = list(verify(place / "run"))
    assert of(lines, CONTRADICTS) == []
    assert any(text.startswith(f"model {evidenced.POINT}: f1 = ") for text in of(lines, HOLDS))


def test_a_model_that_was_deleted(place: Path) -> None:
    shutil.rmtree(place / "checkpoint")
    lines = list(verify(place / "run"))
    assert of(lines, CONTRADICTS) == []
    assert of(lines, NOT_AT_HAND)[-2:] == [
        "model before, checkpoint.", "f1 and f2 were not computed again, without the model before as it was.",
    ]  # fmt: skip


def test_the_model_before_elsewhere(place: Path) -> None:
    (place / "checkpoint").rename(place / "elsewhere")
    lines = list(verify(place / "run", model_before=place / "elsewhere"))
    assert not of(lines, CONTRADICTS)
    assert "same bits" in lines[-1].text
    with pytest.raises(UserError, match="there is no folder"):
        list(verify(place / "run", model_before=place / "nowhere"))


def test_other_versions_are_said(run: Path) -> None:
    change(run, lambda evidence: evidence["made_with"].update({"torch": "1.0", "unlearn_ext": "0.0"}))
    lines = list(verify(run))
    assert of(lines, CONTRADICTS) == []
    page, machine = of(lines, NOTE)
    assert page == "evidence.html was not compared: it is that of version 0.0."
    assert "torch" in machine
    assert "was 1.0" in machine


def test_numbers_within_the_tolerance_hold_and_others_do_not(run: Path) -> None:
    def shifted(factor: float) -> Callable[[dict[str, Any]], None]:
        def how(evidence: dict[str, Any]) -> None:
            evidence["models"]["after"][0]["f2"] *= factor

        return how

    change(run, shifted(1 + 5e-5))
    assert "within 0.0001 (difference 5e-05)" in list(verify(run))[-1].text
    change(run, shifted(1 + 2e-4))
    assert "f2 is" in of(list(verify(run)), CONTRADICTS)[-1]


def test_evidence_that_is_not_evidence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no evidence\.json"):
        list(verify(tmp_path))
    for text in ("", "[]", '{"format": "other"}', "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        (run / EVIDENCE).write_text(text)
        assert len(of(list(verify(run)), CONTRADICTS)) == 1
    change_to = {"format": "unlearn_ext evidence 1"}
    (run / EVIDENCE).write_text(json.dumps(change_to))
    assert of(list(verify(run)), CONTRADICTS)


def test_the_earlier_run(run: Path) -> None:
    earlier = shutil.copytree(run, run.parent / "earlier")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"after": str(earlier)}))
    write_evidence(run, None)
    assert "the evidence of the earlier run earlier is as it was." in of(list(verify(run)), HOLDS)
    write_evidence(earlier, None)
    change(earlier, lambda evidence: evidence["request"].update({"operator": "A. Example"}))
    assert any("has been written again since" in text for text in of(list(verify(run)), NOTE))
    shutil.rmtree(earlier)
    assert "the evidence of the earlier run earlier." in of(list(verify(run)), NOT_AT_HAND)


# ---- where an image is


@pytest.mark.parametrize(
    ("file", "given", "there"),
    [
        ("ours/1.png", "ours", "ours/1.png"),
        ("../data/ours/a/1.png", "data/ours", "data/ours/a/1.png"),
        ("ours/ours/1.png", "ours", "ours/ours/1.png"),
        ("~/ours/1.png", "home/ours", "home/ours/1.png"),
        (r"ours/caf\udce9.png", "ours", os.fsdecode(b"ours/caf\xe9.png")),
    ],
)
def test_an_image_is_found_below_the_folder_that_was_given(tmp_path: Path, file: str, given: str, there: str) -> None:
    path = tmp_path / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"image")
    folders = [tmp_path / "other", tmp_path / given]
    assert find_image(file, file_sha256(path), folders) == (path, True)
    assert find_image(file, "0" * 64, folders) == (path, False)
    path.unlink()
    assert find_image(file, "0" * 64, folders) == (None, False)


def test_a_file_of_this_name_in_another_folder_is_not_the_image(tmp_path: Path) -> None:
    for name in ("ours/1.png", "theirs/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    sha256 = file_sha256(tmp_path / "ours/1.png")
    (tmp_path / "ours/1.png").unlink()
    assert find_image("ours/1.png", sha256, folders) == (None, False)
