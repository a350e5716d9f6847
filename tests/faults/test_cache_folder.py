"""Without a writable home folder, a command that needs the cache fails before training; others work."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("typer")
pytest.importorskip("PIL.Image")

import tiny
from typer.testing import CliRunner

from unlearn_ext._utils.cache import cache_folder, writable_cache_folder
from unlearn_ext.cli.app import app
from unlearn_ext.data.storage import empty
from unlearn_ext.errors import UserError

NO_HOME = "there is no home folder to keep downloads and small models in: set UNLEARN_EXT_CACHE to a folder for them."


def call(*arguments: str) -> tuple[int, str]:
    """Run a command; return its exit code and its output as one line."""
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Remove the home folder, as for a container's user id without an account; return the working folder."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "UNLEARN_EXT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything is trained."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    for module in ("pretrain", "metrics.extractors.classifier"):
        monkeypatch.setattr(f"unlearn_ext.{module}.train", fail)


COMMANDS = {
    "pretrain": "pretrain",
    "demo": "demo --family mae --out run",
    "run": "run --epsilon 0.3 --out run",
    "sweep": "sweep --out run",
    "reproduce": "reproduce --quick --jobs 1 --out run",
    "fashion-mnist": "pretrain --data fashion-mnist",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_needs_a_cache_says_so(homeless: Path, untrained: None, command: str) -> None:
    if "fashion" in command and Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("this machine has it outside of the cache")
    code, said = call(*command.split())
    assert code == 1
    assert said.endswith(f"Error: {NO_HOME}")
    assert not (homeless / "run" / "front.csv").exists()
    assert not (homeless / "~").exists()


def test_a_classifier_that_would_be_cached(homeless: Path, untrained: None) -> None:
    from unlearn_ext.metrics import load_extractor

    with pytest.raises(UserError) as raised:
        load_extractor("mnist-cnn")
    assert str(raised.value) == NO_HOME


def test_arrays_that_would_be_stored_in_the_cache(homeless: Path) -> None:
    with pytest.raises(UserError) as raised:
        empty((8,), torch.float32, limit=0)
    assert str(raised.value) == NO_HOME


@pytest.mark.parametrize("home", [None, "", "/nowhere", "/proc/nowhere"])
def test_own_images_and_models_need_no_home(homeless: Path, monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    tiny.write_inputs(homeless, images=4)
    options = "--epsilon 0.3 --model checkpoint --forget ours --retain theirs --steps 1 --out run"
    code, said = call("run", *options.split())
    assert code == 0, said
    assert (homeless / "run" / "eps-0.3000" / "config.json").is_file()


# Environment variables, and where the cache folder is then; {at} is the folder of the test.
PLACES = {
    "our own variable": ({"UNLEARN_EXT_CACHE": "{at}/a", "XDG_CACHE_HOME": "{at}/b", "HOME": "{at}/c"}, "{at}/a"),
    "everybody's variable": ({"XDG_CACHE_HOME": "{at}/b", "HOME": "{at}/c"}, "{at}/b/unlearn_ext"),
    "an empty variable": (
        {"UNLEARN_EXT_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "{at}/c"},
        "{at}/c/.cache/unlearn_ext",
    ),
    "a relative variable": ({"XDG_CACHE_HOME": "b", "HOME": "{at}/c"}, "{at}/c/.cache/unlearn_ext"),
    "no home is needed": ({"XDG_CACHE_HOME": "{at}/b"}, "{at}/b/unlearn_ext"),
}


@pytest.mark.parametrize(("environment", "place"), PLACES.values(), ids=PLACES)
def test_where_the_cache_is(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], place: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(at=homeless))
    assert cache_folder() == Path(place.format(at=homeless))
    assert writable_cache_folder() == cache_folder()
    assert list(cache_folder().iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/cache", "/proc/cache", "/dev/null/cache"])
def test_a_cache_that_cannot_be_written_to(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, untrained: None, place: str
) -> None:
    (homeless / "file").write_text("mine")
    monkeypatch.setenv("UNLEARN_EXT_CACHE", place)
    code, said = call("run", "--epsilon", "0.3", "--out", "run")
    assert code == 1
    assert said.startswith(f"Error: the cache folder {place} cannot be written to: ")
    assert said.endswith("; set UNLEARN_EXT_CACHE to one that can.")
    assert (homeless / "file").read_text() == "mine"


def test_a_full_disk_is_found_before_training(homeless: Path, monkeypatch: pytest.MonkeyPatch, untrained: None) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(homeless / "cache"))
    monkeypatch.setattr("unlearn_ext._utils.cache.tempfile.TemporaryFile", full)
    code, said = call("pretrain")
    assert (code, "cannot be written to: No space left on device; set UNLEARN_EXT_CACHE" in said) == (1, True)
