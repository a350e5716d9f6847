"""Commands on a checkpoint file in the layout of another program, with its configuration beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from originals.mae import MaskedAutoencoder
from safetensors.torch import load_file

from unlearn_ext import models, report
from unlearn_ext.errors import UserError

image = pytest.importorskip("PIL.Image")
pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

NAME = "mae_visualize_vit_tiny"
HEADS = "num_heads: 4\ndecoder_num_heads: 2\n"


@pytest.fixture(autouse=True, scope="module")
def without_report() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda folder: folder / "report.html")
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, a checkpoint file and a sweep; copy it before changing it."""
    place = tmp_path_factory.mktemp("swept")
    for folder in ("models", "blobs"):
        (place / folder).mkdir()
    torch.save({"model": MaskedAutoencoder().state_dict(), "epoch": 7}, place / "blobs" / "0123")
    (place / "blobs" / "4567").write_text(HEADS)
    for name, blob in ((f"{NAME}.pth", "0123"), (f"{NAME}.yaml", "4567")):  # as in the cache of the Hugging Face hub
        (place / "models" / name).symlink_to(Path("..", "blobs", blob))
    rng = np.random.default_rng(0)
    for side in ("ours", "theirs"):
        (place / side).mkdir()
        for index in range(10):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            image.fromarray(pixels).save(place / side / f"{index}.png")
    code, said = call("sweep", *inputs(place), "--out", str(place / "run"), "--points", "1", "--steps", "2")
    assert code == 0, said
    assert f"Configuration of the model: {place}/models/{NAME}.yaml mae: 22,920 parameters to train" in said
    return place


@pytest.fixture
def place(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "place"))


def inputs(place: Path) -> list[str]:
    model = str(place / "models" / f"{NAME}.pth")
    return ["--model", model, "--forget", str(place / "ours"), "--retain", str(place / "theirs")]


def weights(place: Path) -> dict[str, torch.Tensor]:
    return torch.load(place / "models" / f"{NAME}.pth", weights_only=True)["model"]


def test_the_options_that_were_found_are_kept(swept: Path) -> None:
    sources = json.loads((swept / "run" / "sources.json").read_text())
    assert sources["family"] == "mae"
    assert sources["model"] == str(swept / "models" / f"{NAME}.pth")
    assert sources["model_config"] == str(swept / "models" / f"{NAME}.yaml")


def test_the_evidence_has_the_file_and_its_configuration(swept: Path) -> None:
    files = json.loads((swept / "run" / "evidence.json").read_bytes())["models"]["before"]["files"]
    assert list(files) == [f"{NAME}.pth", f"{NAME}.yaml"]
    code, said = call("verify", str(swept / "run"))
    assert code == 0, said
    assert f"model before, {NAME}.pth: 2 files, unchanged." in said
    assert said.count("computed again, the same bits.") > 2


def test_another_configuration_contradicts_the_evidence(swept: Path) -> None:
    configuration = swept / "models" / f"{NAME}.yaml"
    configuration.write_text(HEADS + "# changed\n")
    try:
        code, said = call("verify", str(swept / "run"))
    finally:
        configuration.write_text(HEADS)
    assert code == 1
    assert f"CONTRADICTS model before, {NAME}.pth: {NAME}.yaml was changed." in said


def test_a_file_that_was_moved_is_verified(place: Path) -> None:
    sources = json.loads((place / "run" / "sources.json").read_text())
    assert sources["model"].startswith("/")
    shutil.move(sources["model"], sources["model"] + ".gone")
    try:
        code, said = call("verify", str(place / "run"), "--model-before", str(place / "models" / f"{NAME}.pth"))
    finally:
        shutil.move(sources["model"] + ".gone", sources["model"])
    assert code == 0, said
    assert f"model before, {NAME}.pth: 2 files, unchanged." in said


@pytest.mark.parametrize(
    "command",
    [
        ["dial", "RUN", "--epsilon", "90%"],
        ["evidence", "RUN"],
        pytest.param(["audit", "RUN"], marks=pytest.mark.slow),
        pytest.param(["evaluate", "RUN"], marks=pytest.mark.slow),
    ],
    ids=lambda command: command[0],
)
def test_later_commands_read_the_file_again(command: list[str], place: Path) -> None:
    code, said = call(*(str(place / "run") if word == "RUN" else word for word in command))
    assert code == 0, said


def test_a_run_can_be_continued(place: Path, tmp_path: Path) -> None:
    rows = (place / "run" / "front.csv").read_text().splitlines()
    asked = next(row.split(",")[0] for row in rows if row.startswith("eps-"))
    after = [
        "--after",
        str(place / "run" / asked),
        "--forget",
        f"next={place / 'ours'}",
        "--retain",
        str(place / "theirs"),
    ]
    code, said = call("run", *after, "--epsilon", "50%", "--steps", "1", "--out", str(tmp_path / "second"))
    assert code == 0, said
    code, said = call(
        "run", *after, "--epsilon", "50%", "--model-config", "other.yaml", "--out", str(tmp_path / "third")
    )
    assert code == 2
    assert "--model-config is that of" in said


def test_a_model_is_exported_in_the_layout_of_the_file(swept: Path, tmp_path: Path) -> None:
    command = ["export", str(swept / "run"), str(tmp_path / "out"), "--point", "most-forgotten", "--format", "original"]
    code, said = call(*command)
    assert code == 0, said
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["README.md", f"{NAME}.safetensors"]
    assert f'load_file("{NAME}.safetensors")' in (tmp_path / "out" / "README.md").read_text()
    written, before = load_file(tmp_path / "out" / f"{NAME}.safetensors"), weights(swept)
    assert written.keys() == before.keys()
    changed = {name for name in before if not torch.equal(written[name], before[name])}
    assert changed
    assert not any("decoder" in name or name in ("mask_token", "pos_embed") for name in changed)
    (tmp_path / "heads.yaml").write_text(HEADS)
    again = tmp_path / "out" / f"{NAME}.safetensors"
    with pytest.raises(UserError, match="how many attention heads"):  # the folder has no configuration
        models.load("mae", again)
    ours = models.load("mae", again, tmp_path / "heads.yaml")
    theirs = models.load("mae", swept / "run" / "most-forgotten")
    for name, value in theirs.module.state_dict().items():
        assert torch.equal(ours.module.state_dict()[name], value), name


def test_a_changed_file_is_not_mixed_with_the_run(swept: Path, tmp_path: Path) -> None:
    path, configuration = (swept / "models" / f"{NAME}.{suffix}" for suffix in ("pth", "yaml"))
    before = path.read_bytes()
    command = ["export", str(swept / "run"), str(tmp_path / "out"), "--point", "most-forgotten", "--format", "original"]
    try:
        torch.save({"model": {name: value + 1 for name, value in weights(swept).items()}}, path)
        code, said = call(*command)
        assert code == 1
        assert f"the checkpoint {path} is needed again, but {NAME}.pth was changed since" in said
        path.unlink()
        code, said = call(*command)
        assert code == 1
        assert f"the checkpoint {path} is gone" in said
        path.write_bytes(before)
        configuration.write_text(HEADS + "norm_pix_loss: true\n")
        code, said = call(*command)
        assert code == 1
        assert f"the checkpoint {path} is needed again, but {NAME}.yaml was changed since" in said
    finally:
        path.write_bytes(before)
        configuration.write_text(HEADS)
    assert not (tmp_path / "out").exists()


def test_a_run_that_began_with_no_file_has_no_original_format(place: Path, tmp_path: Path) -> None:
    sources = json.loads((place / "run" / "sources.json").read_text())
    for model in ("owner/model-v1.5", str(place / "run" / "most-forgotten"), None):
        changed = sources | {"model": model, "model_config": None}
        (place / "run" / "sources.json").write_text(json.dumps(changed))
        code, said = call("export", str(place / "run"), str(tmp_path / "out"), "--format", "original")
        assert code == 1
        assert "began with no checkpoint file, so there is no original format: leave out --format" in said


def test_a_format_that_is_not_there(swept: Path, tmp_path: Path) -> None:
    code, said = call("export", str(swept / "run"), str(tmp_path / "out"), "--format", "onnx")
    assert code == 2
    assert "there is no format onnx; there are library and original." in said


def test_a_file_is_converted(swept: Path, tmp_path: Path) -> None:
    file, folder = swept / "models" / f"{NAME}.pth", tmp_path / "folder"
    code, said = call("convert", str(file), str(folder))
    assert code == 0, said
    assert said.endswith(f"Model of family mae: {folder}")
    assert models.family_of(folder) == "mae"
    ours, theirs = models.load("mae", folder), models.load("mae", file)
    for name, value in theirs.module.state_dict().items():
        assert torch.equal(ours.module.state_dict()[name], value), name
    code, said = call("convert", str(file), str(folder))
    assert (code, "already contains a model" in said) == (1, True)
    assert call("convert", str(file), str(folder), "--force")[0] == 0
    for name, sentence in (("nothing.pth", "there is no file {}."), ("folder", "{} is a folder; only files are")):
        code, said = call("convert", str(tmp_path / name), str(tmp_path / "other"))
        assert (code, sentence.format(tmp_path / name) in said) == (2, True)


def test_the_family_need_not_be_typed(swept: Path, tmp_path: Path) -> None:
    command = ["run", *inputs(swept), "--epsilon", "50%", "--steps", "1", "--out", str(tmp_path / "out")]
    code, said = call(*command, "--family", "vqgan")
    assert code == 1
    assert "is a checkpoint of family mae (format mae), not of vqgan" in said
    folder = swept / "run" / "most-forgotten"
    code, said = call(*["run", "--model", str(folder), *command[3:]])
    assert code == 0, said


def test_a_configuration_without_a_model(tmp_path: Path) -> None:
    code, said = call("run", "--epsilon", "50%", "--model-config", "x.yaml", "--out", str(tmp_path / "out"))
    assert code == 2
    assert "--model-config needs --model, the checkpoint file that it belongs to." in said
