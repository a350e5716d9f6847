"""What is printed while models are trained, with a clock that the test turns."""

from __future__ import annotations

import io
import math
import time

import pytest

pytest.importorskip("rich")
from rich.console import Console

from unlearn_ext.cli import terminal
from unlearn_ext.cli.estimate import MIXED, Estimate, in_words
from unlearn_ext.unlearning.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of one number, the time that ``time.monotonic`` returns."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def report(stage: str, index: int, step: int, *, total: int = 4, steps: int = 50, mixed: int = 0) -> Progress:
    return Progress(stage, index, total, step, steps, 0.5, 0.25, 1.0, mixed)


def test_the_time_left_is_that_of_the_remaining_steps(clock: list[float]) -> None:
    estimate = Estimate()
    assert math.isnan(estimate(report("a", 0, 1)))
    clock[0] += 1.0
    assert math.isnan(estimate(report("a", 0, 6))), "a second is too short"
    clock[0] += 9.0
    assert estimate(report("a", 0, 11)) == pytest.approx(39 + 3 * 50)
    assert estimate(report("b", 1, 1)) == pytest.approx(49 + 2 * 50), "the pace of the last stage, until it has its own"


def test_mixed_models_take_a_part_of_the_time(clock: list[float]) -> None:
    estimate = Estimate()
    estimate(report("a", 0, 0, mixed=2))
    clock[0] += 10
    assert estimate(report("a", 0, 10, mixed=2)) == pytest.approx(40 + (1 + 2 * MIXED) * 50)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (4, "a few seconds"), (47, "about 50 seconds"), (100, "about 2 minutes"), (3000, "about 50 minutes"),
        (9000, "about 2.5 hours"), (math.nan, ""),
    ],
)  # fmt: skip
def test_times_are_rounded(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def watched(clock: list[float], monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> str:
    """Return what is printed during two stages of 50 steps that take a second each, beginning at step 0."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=120, highlight=False)
    monkeypatch.setattr(terminal, "out", console)
    with terminal.Watch() as watch:
        for index, stage in enumerate(("anchor-0.6000", "anchor-0.2500")):
            for step in range(51):
                watch(report(stage, index, step, total=2))
                clock[0] += step < 50
    return text.getvalue()


def test_without_a_terminal_a_stage_is_two_lines(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = "last minibatch: f1 0.5000  f2 0.25000  λ 1"
    assert watched(clock, monkeypatch, is_terminal=False).splitlines() == [
        "anchor-0.6000  begins, 1 of 2",
        "This will take about 2 minutes for 2 models.",
        f"anchor-0.6000  {numbers}  50.0 s",
        "anchor-0.2500  begins, 2 of 2; about 50 seconds left",
        f"anchor-0.2500  {numbers}  50.0 s",
    ]


def test_in_a_terminal_there_are_bars(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    said = watched(clock, monkeypatch, is_terminal=True)
    assert "begins" not in said
    assert "about 2 minutes for 2 models" in said
    assert "about 50 seconds left" in said
    assert "━" in said
