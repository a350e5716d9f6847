"""The commands that write and verify evidence, on a tiny model and tiny images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from commands import call

from unlearn_ext import data, report

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True, scope="module")
def without_report() -> Iterator[None]:
    """Skip the report, which takes most of the time of a small sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda folder: folder / "report.html")
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, a checkpoint and a sweep; copy it before changing it."""
    place = tmp_path_factory.mktemp("swept")
    tiny.write_inputs(place, images=10)
    code, said = call("sweep", *options(place), "--operator", "A. Example", "--request-id", "DSR-1")
    assert code == 0, said
    assert f"Evidence: {place}/run/evidence.json" in said
    return place


@pytest.fixture
def place(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "place"))


def options(place: Path) -> list[str]:
    inputs = ["--model", str(place / "checkpoint"), "--forget", str(place / "ours"), "--retain", str(place / "theirs")]
    return [*inputs, "--out", str(place / "run"), "--points", "1", "--steps", "2"]


def evidence(place: Path) -> dict:
    return json.loads((place / "run" / "evidence.json").read_bytes())


def test_a_sweep_leaves_evidence_that_can_be_verified(swept: Path) -> None:
    request = evidence(swept)["request"]
    assert (request["id"], request["operator"]) == ("DSR-1", "A. Example")
    assert len(evidence(swept)["images"]) == 20
    code, said = call("verify", str(swept / "run"))
    assert code == 0, said
    assert "contradicts" not in said.lower().replace("nothing contradicts", "")
    assert "images to forget, request forget: 10 of 10 are at hand and unchanged." in said
    assert said.count("computed again, the same bits.") == len(evidence(swept)["models"]["after"]) + 1
    assert said.endswith("Nothing contradicts the evidence.")


def test_the_exit_code_of_a_contradiction_is_1(place: Path) -> None:
    weights = place / "run" / "most-forgotten" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, said = call("verify", str(place / "run"))
    assert code == 1
    assert "CONTRADICTS model most-forgotten: diffusion_pytorch_model.safetensors was changed." in said
    assert said.endswith("1 line contradicts the evidence.")


def test_dial_adds_its_model_to_the_evidence(place: Path) -> None:
    before = evidence(place)
    epsilon = sum(point["f1"] for point in before["models"]["after"][:2]) / 2
    code, said = call("dial", str(place / "run"), "--epsilon", f"{epsilon:.4f}")
    assert code == 0, said
    after = evidence(place)
    assert len(after["models"]["after"]) == len(before["models"]["after"]) + 1
    assert after["request"] | {"date": ""} == before["request"] | {"date": ""}
    assert call("verify", str(place / "run"))[0] == 0


def test_force_replaces_the_evidence_and_resume_keeps_it(place: Path) -> None:
    again = options(place)
    (place / "run" / "evidence.json.sig").write_bytes(b"of the earlier run")
    code, said = call("sweep", *again, "--force", "--seed", "1")
    assert code == 0, said
    assert evidence(place)["command"]["seed"] == 1
    assert evidence(place)["request"]["operator"] == ""
    assert not (place / "run" / "evidence.json.sig").exists()
    whole = (place / "run" / "evidence.json").read_bytes()
    code, said = call("sweep", *again, "--resume", "--seed", "1")
    assert code == 0, said
    assert (place / "run" / "evidence.json").read_bytes() == whole


def test_the_command_evidence_writes_it_for_a_run_without(place: Path) -> None:
    (place / "run" / "evidence.json").unlink()
    code, said = call("verify", str(place / "run"))
    assert code == 1
    assert f"has no evidence.json: `unlearn-ext evidence {place / 'run'}` writes it for a finished run." in said
    code, said = call("evidence", str(place / "run"), "--request-id", "DSR-2")
    assert code == 0, said
    assert evidence(place)["request"]["id"] == "DSR-2"
    assert evidence(place)["models"]["before"]["named"] == "checkpoint"
    code, said = call("evidence", str(place / "run"), "--operator", "B. Example")
    assert evidence(place)["request"]["id"] == "DSR-2"
    assert evidence(place)["request"]["operator"] == "B. Example"
    assert call("verify", str(place / "run"))[0] == 0


def test_signing_and_checking_the_signature(place: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private, pem = ed25519.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    key, public, run = place / "key.pem", place / "public.pem", str(place / "run")
    encrypted = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encrypted))
    public.write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    code, said = call("evidence", run, "--sign", str(key), UNLEARN_EXT_KEY_PASSWORD="guess")
    assert code == 1
    assert "its password is wrong" in said
    code, said = call("evidence", run, "--sign", str(key), UNLEARN_EXT_KEY_PASSWORD="secret")
    assert code == 0, said
    code, said = call("verify", run, "--public-key", str(public))
    assert code == 0, said
    assert f"evidence.json was signed with the key that belongs to {public}." in said
    assert "is signed; give --public-key" in call("verify", run)[1]
    signature = place / "run" / "evidence.json.sig"
    signature.write_bytes(signature.read_bytes()[::-1])
    code, said = call("verify", run, "--public-key", str(public))
    assert code == 1
    assert "CONTRADICTS evidence.json.sig is no signature of evidence.json" in said


def test_a_key_is_checked_before_any_work(place: Path) -> None:
    pytest.importorskip("cryptography")
    code, said = call("sweep", *options(place), "--force", "--sign", str(place / "no.pem"))
    assert code == 1
    assert "no.pem cannot be read: No such file or directory." in said
    assert (place / "run" / "evidence.json").exists()


def test_verify_the_images_of_a_built_in_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = data.divide("mnist", pictures[:12], pictures[12:])
    monkeypatch.setattr(data, "load", lambda *_, **__: images)
    tiny.model("vqgan").save_pretrained(tmp_path / "checkpoint")
    how = ["--data", "mnist", "--model", str(tmp_path / "checkpoint"), "--points", "1", "--steps", "1"]
    code, said = call("sweep", *how, "--out", str(tmp_path / "run"))
    assert code == 0, said
    code, said = call("verify", str(tmp_path / "run"))
    assert code == 0, said
    assert "images to forget, request forget: 12 of 12 are at hand and unchanged." in said
    assert "not at hand" not in said
    changed = pictures.clone()
    changed[0, 0, 0, 0] ^= 1
    other = data.divide("mnist", changed[:12], changed[12:])
    monkeypatch.setattr(data, "load", lambda *_, **__: other)
    code, said = call("verify", str(tmp_path / "run"))
    assert code == 1
    assert said.endswith("1 line contradicts the evidence.")


def test_a_chain_of_two_requests(tmp_path: Path) -> None:
    tiny.write_inputs(tmp_path, images=10)
    (tmp_path / "more").mkdir()
    for path in sorted((tmp_path / "theirs").iterdir())[:4]:
        path.rename(tmp_path / "more" / path.name)
    how = ["--model", str(tmp_path / "checkpoint"), "--steps", "2", "--validation", "0"]
    first, second = tmp_path / "first", tmp_path / "second"
    request = ["--forget", f"ana={tmp_path / 'ours'}", "--retain", str(tmp_path / "theirs"), "--epsilon", "ana=60%"]
    code, said = call("run", *how, *request, "--out", str(first), "--request-id", "DSR-1")
    assert code == 0, said
    request = ["--forget", f"ben={tmp_path / 'more'}", "--after", str(first), "--epsilon", "ben=60%"]
    code, said = call("run", *how, *request, "--out", str(second), "--request-id", "DSR-2")
    assert code == 0, said
    recorded = json.loads((second / "evidence.json").read_bytes())
    assert [(row["request"], row["since"], row["asked"]) for row in recorded["requests"]] == [
        ("ben", "", "60%"), ("ana", "first", None),
    ]  # fmt: skip
    for run in (first, second):
        code, said = call("verify", str(run))
        assert code == 0, said
        assert "f1 of the worst image" in said
        assert said.count("the same bits") == 2
    assert "the evidence of the earlier run first is as it was." in said
    shutil.rmtree(tmp_path / "ours")
    code, said = call("verify", str(second))
    assert code == 0, said
    assert "f1 of request ana was not computed again" in said
    image = next((tmp_path / "more").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    code, said = call("verify", str(second))
    assert code == 1
    assert f"more/{image.name} was changed." in said
