"""What evidence.json and evidence.html contain, and when they change."""

from __future__ import annotations

import copy
import importlib.resources
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("jinja2")

import evidenced

from unlearn_ext import UserError
from unlearn_ext._utils.file_hash import file_sha256
from unlearn_ext.evidence import EVIDENCE, PAGE, SIGNATURE, Labels, refresh, write_evidence
from unlearn_ext.evidence.hashing import digest_of, folder_files
from unlearn_ext.evidence.record import Before

SCHEMA = json.loads(importlib.resources.files("unlearn_ext.evidence").joinpath("schema.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run; copy it before changing it."""
    place = tmp_path_factory.mktemp("written")
    evidenced.write_run(place)
    return place


@pytest.fixture
def place(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "place"))


@pytest.fixture
def run(place: Path) -> Path:
    return place / "run"


def before(run: Path) -> Before:
    return Before(evidenced.MODEL, run.parent / evidenced.MODEL)


def content(run: Path, *labels: Any) -> dict[str, Any]:
    return json.loads(write_evidence(run, before(run), Labels(*labels)).read_bytes())


def page(run: Path) -> str:
    return (run / PAGE).read_text(encoding="utf-8")


def test_the_evidence_follows_its_schema(run: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    evidence = content(run)
    validator.validate(evidence)
    evidenced.write_audit(run)
    refresh(run)
    validator.validate(json.loads((run / EVIDENCE).read_bytes()))
    for name in evidence:
        assert not validator.is_valid({key: value for key, value in evidence.items() if key != name}), name
    assert not validator.is_valid(evidence | {"other": 1})
    broken = copy.deepcopy(evidence)
    broken["images"][0]["sha256"] = "0" * 63
    assert not validator.is_valid(broken)


def test_it_states_what_was_asked_and_reached_and_by_what(run: Path) -> None:
    evidence = content(run, "DSR-1", "A. Example")
    assert evidence["request"] | {"purpose": ""} == {
        "id": "DSR-1", "operator": "A. Example", "date": "2026-01-01T10:05:00Z", "purpose": "",
    }  # fmt: skip
    assert evidence["command"]["argv"] == ["unlearn-ext", "run", "--out", "run"]
    assert evidence["command"]["settings"]["batch_size"] == 4
    alice, bob = evidence["requests"]
    assert alice["f1"] <= alice["epsilon"]
    assert bob["f1"] > bob["epsilon"]
    assert alice["asked"] == "50%"
    assert alice["worst_file"].startswith("photos/alice/")
    images = {row["file"]: row for row in evidence["images"]}
    assert images["photos/bob/broken.png"]["used_as"] == "left out"
    assert images["theirs/3.png"]["sha256"] == file_sha256(run.parent / "theirs/3.png")
    assert evidence["models"]["before"]["files"] == folder_files(run.parent / evidenced.MODEL)
    (after,) = evidence["models"]["after"]
    assert after["files"] == folder_files(run / evidenced.POINT)
    assert after["sha256"] != evidence["models"]["before"]["sha256"]
    assert evidence["tables"].keys() == {"front.csv", "requests.csv", "images.csv", "metrics.json", "sources.json"}
    assert {"unlearn_ext", "torch", "python", "diffusers", "transformers", "device"} <= evidence["made_with"].keys()


def test_it_says_nothing_about_the_users_machine_that_was_not_typed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(variable, "somebody-by-name")
    evidence = content(run)
    text = (run / EVIDENCE).read_text(encoding="utf-8") + page(run)
    assert evidence["request"]["operator"] == ""
    assert "somebody-by-name" not in text
    assert str(run.parent) not in text


def test_the_same_run_gives_the_same_bytes_and_the_same_id(run: Path) -> None:
    first = content(run)
    bytes_before = [(run / name).read_bytes() for name in (EVIDENCE, PAGE)]
    assert content(run) == first
    assert [(run / name).read_bytes() for name in (EVIDENCE, PAGE)] == bytes_before
    (run / EVIDENCE).unlink()
    assert content(run)["request"]["id"] == first["request"]["id"]


def test_another_limit_or_another_image_gives_another_id(run: Path) -> None:
    ids = {content(run)["request"]["id"]}
    for table, column, value in (("requests.csv", "epsilon", "0.1"), ("images.csv", "sha256", "0" * 64)):
        (run / EVIDENCE).unlink()
        evidenced.edit(run / table, column, value)
        ids.add(content(run)["request"]["id"])
    assert len(ids) == 3


def test_labels_stay_when_it_is_written_again(run: Path) -> None:
    content(run, "DSR-1", "A. Example")
    assert content(run)["request"]["id"] == "DSR-1"
    assert content(run, None, "")["request"]["operator"] == ""
    refresh(run, Labels(operator="B. Example"))
    assert json.loads((run / EVIDENCE).read_bytes())["request"]["operator"] == "B. Example"


def test_refresh_takes_the_audit_and_keeps_every_recorded_hash(run: Path) -> None:
    first = content(run)
    weights = run / evidenced.POINT / "config.json"
    weights.write_text(weights.read_text() + " ")
    evidenced.write_audit(run, "first <try>")
    assert refresh(run) == run / EVIDENCE
    second = json.loads((run / EVIDENCE).read_bytes())
    assert second["models"] == first["models"]
    assert second["audits"] == [
        {"point": evidenced.POINT, "audit": "linear reader", "measure": "error", "forget": 0.27, "retain": 0.03,
         "chance": None, "note": "first <try>"}
    ]  # fmt: skip
    assert second["tables"]["audit.csv"] == file_sha256(run / "audit.csv")
    assert "first &lt;try&gt;" in page(run)


def test_nothing_to_refresh(run: Path) -> None:
    assert refresh(run) is None
    assert not (run / EVIDENCE).exists()


def test_a_signature_of_earlier_evidence_is_removed(run: Path) -> None:
    write_evidence(run, before(run), sign=lambda content: b"signed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refresh(run)  # nothing has changed
    assert (run / SIGNATURE).read_bytes() == b"signed"
    evidenced.write_audit(run)
    with pytest.warns(UserWarning, match="its signature was removed"):
        refresh(run)
    assert not (run / SIGNATURE).exists()


def test_a_folder_of_an_earlier_version(run: Path) -> None:
    for name in ("images.csv", "requests.csv"):
        (run / name).unlink()
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("command", "argv", "started", "finished", "after", "requests"):
        del metrics[name]
    (run / "metrics.json").write_text(json.dumps(metrics))
    evidence = content(run)
    if jsonschema := pytest.importorskip("jsonschema"):
        jsonschema.Draft202012Validator(SCHEMA).validate(evidence)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", evidence["request"]["date"])
    assert "The list of images was not recorded" in page(run)
    assert "Is the limit kept? " in page(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json cannot be read"):
        write_evidence(tmp_path, None)


def test_nan_becomes_null(run: Path) -> None:
    evidenced.edit(run / "front.csv", "f1_validation", "nan")
    assert content(run)["models"]["after"][0]["f1_validation"] is None


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2.5, "é"], "sha256": "x"}) == digest_of({"b": [2.5, "é"], "a": 1})


# ---- the page


def test_the_page_says_what_holds_and_what_does_not(run: Path) -> None:
    evidence = content(run)
    text = " ".join(re.sub(r"<[^>]+>", " ", page(run)).split())
    assert "Is the limit kept? yes" in text
    assert "Is the limit kept? no, 1 % above" in text
    assert f"The worst one is {evidence['requests'][0]['worst_file']}" in text
    assert "cannot identify image file" in text
    for sentence in evidence["not_promised"]:
        assert sentence.replace("'", "&#39;") in page(run)


def test_every_string_on_the_page_is_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    for table, column in (("images.csv", "file"), ("images.csv", "reason"), ("requests.csv", "worst_file"),
                          ("requests.csv", "since")):  # fmt: skip
        evidenced.edit(run / table, column, evil)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"argv": [evil], "dataset": evil, "after": f"/x/{evil}"}))
    evidenced.write_audit(run, evil)
    content(run, evil, evil)
    assert page(run).count("&lt;script&gt;") >= 7
    assert "<script" not in page(run)


@pytest.mark.parametrize("choice", [None, "none", "retain", "blurred", "all"])
def test_pictures_only_if_all_were_asked_for(run: Path, choice: str | None) -> None:
    pytest.importorskip("matplotlib")
    images = np.zeros((4, 1, 8, 8), np.uint8)
    names = ("original", "corrupted", "unmodified", evidenced.POINT)
    np.savez(run / "samples.npz", is_forget=np.arange(4) < 2, **dict.fromkeys(names, images))
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | ({"pictures": choice} if choice else {})))
    content(run)
    assert page(run).count("<img") == (2 * len(names) if choice == "all" else 0)


def test_without_the_library_for_pages_only_the_page_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content(run)
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    evidenced.write_audit(run)
    with pytest.warns(UserWarning, match=r"evidence\.html was not written: jinja2 is not installed"):
        refresh(run)
    assert json.loads((run / EVIDENCE).read_bytes())["audits"]
    assert not (run / PAGE).exists()
