"""Any terminal encoding, a closed pipe, a log on a full disk: the command finishes its work."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")

import tiny

from unlearn_ext.cli.streams import SafeStream, make_safe

ROOT = Path(__file__).parents[2]
TEXT = "ε = 0.3, λ ‖g‖² → 0 … – “caf\udce9” █ 日本"


def said(encoding: str) -> bytes:
    """Print ``TEXT`` to a pipe with an encoding; return the bytes."""
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        with SafeStream(open(writing, "w", encoding=encoding)) as stream:
            print(TEXT, file=stream)
        return pipe.read()


@pytest.mark.parametrize(
    "encoding", ["ascii", "latin-1", "cp1252", "cp437", "koi8-r", "iso8859-7", "shift_jis", "gb18030", "cp500", "utf-8"]
)
def test_no_text_is_lost_in_any_encoding(encoding: str) -> None:
    text = said(encoding).decode(encoding)
    assert " = 0.3, " in text
    assert "caf\\udce9" in text
    assert "?" not in text
    for letter, name in (("ε", "eps"), ("λ", "lam"), ("→", "->"), ("日", "\\u65e5")):
        try:
            letter.encode(encoding)
        except UnicodeEncodeError:
            assert name in text
        else:
            assert letter in text


def test_greek_is_spelled_out_in_ascii() -> None:
    assert said("ascii") == b'eps = 0.3, lam ||g||^2 -> 0 ... - "caf\\udce9" \\u2588 \\u65e5\\u672c\n'


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_closed_pipe(capfd: pytest.CaptureFixture[str], length: int) -> None:
    reading, writing = os.pipe()
    with SafeStream(open(writing, "w", encoding="utf-8")) as stream:
        os.close(reading)
        for _ in range(3):
            print("x" * length, file=stream, flush=True)
        assert os.path.samestat(os.fstat(writing), os.stat(os.devnull))
    assert capfd.readouterr().err == ""


def test_a_stream_of_a_notebook_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cell:
        encoding = "utf-8"

    out, err = Cell(), Cell()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    make_safe()
    assert (sys.stdout, sys.stderr) == (out, err)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, images to forget and images to retain."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("work")
    tiny.write_inputs(folder, images=8)
    return folder


COMMAND = '"$PYTHON" -m unlearn_ext '
SOURCES = "--model checkpoint --forget ours --retain theirs --steps 1"
TROUBLE = ("Traceback", "Error", "Exception ignored", "Broken pipe")


def shell(place: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a POSIX shell."""
    environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["sh", "-c", line], cwd=place, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("redirected", ["| true", "2>&1 | true", ">&-", ">&- 2>&- <&-", "> /dev/full 2> /dev/full"])
def test_a_run_whose_output_nobody_reads_ends_with_its_model(place: Path, tmp_path: Path, redirected: str) -> None:
    # --epsilon 99 also prints a warning to standard error.
    done = shell(place, f"({COMMAND}run --epsilon 99 {SOURCES} --out {tmp_path}/run) {redirected}")
    assert (tmp_path / "run" / "eps-99.0000" / "config.json").is_file(), done.stderr
    assert done.returncode == 0
    assert not any(word in done.stderr for word in TROUBLE)


def test_a_log_on_a_full_disk_is_mentioned_once(place: Path, tmp_path: Path) -> None:
    done = shell(place, f"{COMMAND}run --epsilon 0.5 {SOURCES} --out {tmp_path}/run > /dev/full")
    assert done.returncode == 0
    assert done.stderr.count(f"The output can no longer be written: {os.strerror(errno.ENOSPC)}. The command") == 1


@pytest.mark.parametrize("arguments", ["--help", "reproduce --help", "info", ""])
def test_help_into_a_closed_pipe(place: Path, arguments: str) -> None:
    done = shell(place, f"({COMMAND}{arguments}; echo $? >&2) | true")
    assert done.stderr == ("2\n" if arguments == "" else "0\n")


def test_a_run_in_a_terminal_of_ascii(place: Path, tmp_path: Path) -> None:
    done = shell(
        place, f"{COMMAND}run --epsilon 99 {SOURCES} --out {tmp_path}/run",
        LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "eps = 99 asked" in done.stdout
    assert (done.stdout + done.stderr).isascii()
