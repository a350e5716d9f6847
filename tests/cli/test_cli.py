"""The output and the exit codes of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")


from commands import call

COMMANDS = (
    "demo", "pretrain", "run", "sweep", "evaluate", "export", "report", "reproduce", "evidence", "verify", "info",
)  # fmt: skip


def test_help_names_every_command() -> None:
    code, said = call("--help")
    assert code == 0
    assert all(command in said for command in COMMANDS)


@pytest.mark.parametrize(
    "command", ["demo", "pretrain", "run", "sweep", "evaluate", "export", "report", "reproduce", "evidence", "verify"]
)
def test_help_teaches_by_example(command: str) -> None:
    code, said = call(command, "--help")
    assert code == 0
    assert f"unlearn-ext {command} " in said.replace("Usage: unlearn-ext", "")


def test_info_says_what_was_built() -> None:
    code, said = call("info")
    assert code == 0
    assert "cuda compiled" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report", "nowhere"], "no run folder at nowhere"),
        (["evaluate", "nowhere"], "no run folder at nowhere"),
        (["verify", "nowhere"], "no run folder at nowhere"),
        (["evidence", "nowhere"], "no run folder at nowhere"),
        (["export", "nowhere", "out"], "no run folder at nowhere"),
        (["sweep", "--data", "cifar"], "no built-in data set `cifar`"),
        (["sweep", "--task", "colour"], "no task `colour`"),
        (["sweep", "--family", "gan"], "no model family `gan`"),
        (["pretrain", "--family", "gan"], "no model family `gan`"),
        (["demo", "--family", "gan"], "no model family `gan`"),
        (["reproduce", "--family", "gan"], "family gan is not compared"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    code, said = call(*arguments)
    assert code == 1
    assert sentence in said
    assert said.startswith("Error: ")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["frobnicate"], "No such command"),
        (["run"], "--epsilon"),
        (["sweep", "--points", "0"], "--points"),
        (["evaluate", "runs/demo", "--images", "0"], "--images"),
        (["reproduce", "--seeds", "0"], "--seeds"),
        (["sweep", "--forget", "a"], "--retain"),
        (["sweep", "--forget", "a", "--retain", "b"], "--model"),
        (["sweep", "--forget", "a", "--retain", "b", "--data", "mnist"], "--data"),
        (["sweep", "--forget-classes", "3,x"], "--forget-classes"),
        (["pretrain", "--forget-classes", "3,x"], "--forget-classes"),
        (["sweep", "--forget-classes", ""], "--forget-classes"),
        (["sweep", "--forget", "a", "--retain", "b", "--forget-classes", "3"], "have no classes"),
        (["sweep", "--data-dir", "a", "--model", "m"], "--data-dir needs --forget-classes"),
        (["sweep", "--data-dir", "a", "--forget-classes", "cat"], "--model"),
        (["sweep", "--data-dir", "a", "--forget", "b", "--retain", "c"], "give one of"),
    ],
)
def test_wrong_usage_is_code_two(arguments: list[str], sentence: str) -> None:
    code, said = call(*arguments)
    assert code == 2
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize("arguments", [["--debug", "report", "nowhere"], ["report", "nowhere", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_is_typed(arguments: list[str]) -> None:
    code, said = call(*arguments)
    assert code == 1
    assert "Traceback" in said


def test_debug_by_environment() -> None:
    assert "Traceback" in call("report", "nowhere", UNLEARN_EXT_DEBUG="1")[1]


def test_an_unforeseen_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the [disk]\nis full")

    monkeypatch.setattr("unlearn_ext.report.write_report", fail)
    assert call("report", "x") == (1, "Error: RuntimeError: the [disk] is full (use --debug for the traceback)")


def test_interruption_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearn_ext.report.write_report", stop)
    assert call("report", "x") == (130, "Stopped.")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_named(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from unlearn_ext.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert result.returncode == 1
    assert "pip install 'unlearn-ext[cli]'" in result.stderr
    assert "Traceback" not in result.stderr
