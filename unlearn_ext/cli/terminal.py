"""Terminal output of a run: progress bars if it is interactive, else a line at the beginning and end of each stage."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from .._utils import distributed
from .estimate import Estimate, in_words

if TYPE_CHECKING:
    from ..reproduction.compare import Standing
    from ..reproduction.table import Cost
    from ..unlearning.progress import Progress
    from ..unlearning.run_folder import RunFolder

__all__ = [
    "Watch",
    "err",
    "facts_table",
    "front_table",
    "metric_tables",
    "out",
    "outcome_table",
    "plain_warnings",
    "standings_table",
    "together",
]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Watch:
    """A progress callback with one bar for the models and one for the steps of the current model.

    After a few timed steps, a line says how long the work will take. If the output is no terminal, there are no bars:
    a line says that a stage begins, with the time that is left, and a line that it has ended, with its seconds.
    """

    def __init__(self) -> None:
        self._last: Progress | None = None
        self._began, self._estimate, self._left, self._estimated = time.monotonic(), Estimate(), math.nan, False
        self._overall = bars.Progress(
            bars.TextColumn("[bold]{task.description:<14}"), bars.BarColumn(16), bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(), bars.TextColumn("elapsed,"), bars.TextColumn("{task.fields[left]}"),
            console=out,
        )  # fmt: skip
        self._steps = bars.Progress(
            bars.TextColumn("{task.description:<14}"), bars.BarColumn(16), bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[numbers]}"), console=out,
        )  # fmt: skip
        self._live = (
            Live(Group(self._overall, self._steps), console=out, transient=True)
            if out.is_terminal and not out.quiet
            else None
        )

    def __enter__(self) -> Watch:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)
        if kind is None:
            self._finish_stage()

    def __call__(self, now: Progress) -> None:
        """Update the bars; print the line of the last model when the next one begins."""
        if self._last is None or (now.stage, now.index) != (self._last.stage, self._last.index):
            self._finish_stage()
            self._start_stage(now)
        self._last, self._left = now, self._estimate(now)
        if not self._estimated and not math.isnan(self._left):
            self._say_estimate(now)
        for task in self._overall.tasks:
            done = now.index + now.step / now.steps  # decreases when corrections add planned steps, hence the maximum
            left = (task.time_remaining or math.nan) if math.isnan(self._left) else self._left
            self._overall.update(
                task.id, completed=max(done, task.completed), total=now.total, left=in_words(left, " left")
            )
        for task in self._steps.tasks:
            self._steps.update(task.id, completed=now.step, total=now.steps, numbers=_numbers(now))

    def _start_stage(self, now: Progress) -> None:
        if self._last is None or now.total != self._last.total:
            for task in list(self._overall.tasks):
                self._overall.remove_task(task.id)
            self._overall.add_task("models", total=now.total, left="")
        if self._last is None or now.total != self._last.total or now.index == 0:
            self._estimate, self._left, self._estimated = Estimate(), math.nan, False
        if not self._live and not math.isnan(now.f2):
            number, left = f", {now.index + 1} of {now.total}" if now.total > 1 else "", in_words(self._left, " left")
            out.print(f"{escape(now.stage):<14} begins{number}{left and '; '}{left}")
        self._began = time.monotonic()
        for task in list(self._steps.tasks):
            self._steps.remove_task(task.id)
        self._steps.add_task(now.stage, total=now.steps, numbers="")

    def _say_estimate(self, now: Progress) -> None:
        self._estimated = True
        models = f" for {now.total} models" if now.total > 1 else ""
        out.print(f"This will take {in_words(self._left)}{models}.")

    def _finish_stage(self) -> None:
        if self._last is None:
            return
        # f2 is NaN if another process made this model; its numbers and time are unknown here.
        seconds = "done" if math.isnan(self._last.f2) else f"[dim]{time.monotonic() - self._began:.1f} s[/]"
        out.print(f"{escape(self._last.stage):<14} {_numbers(self._last)}  {seconds}")


def _numbers(now: Progress) -> str:
    if math.isnan(now.f2):
        return ""
    if math.isnan(now.f1):  # pretraining
        return f"loss {now.f2:.4f}"
    if math.isnan(now.lam):  # a baseline, whose losses need not be f1 and f2
        return f"losses {now.f1:.4f} and {now.f2:.5f}"
    return f"last minibatch: f1 {now.f1:.4f}  f2 {now.f2:.5f}  λ {now.lam:.3g}"


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started; all but the first print only errors."""
    with distributed.joined():
        if not distributed.is_first():
            out.quiet = True
            warnings.simplefilter("ignore", UserWarning)
        yield


def front_table(run: RunFolder) -> Table:
    """Return a table with one row per model: ε asked, f1 reached, the miss and f2."""
    table = Table(title="from the most to the least forgotten", title_style="dim")
    table.add_column("model")
    for heading in ("ε asked", "f1 reached", "miss", "f2 cost"):
        table.add_column(heading, justify="right")
    for point in run.points:
        miss = f"{point.miss:+.4f} ({100 * point.miss / run.span:+.1f} %)"
        table.add_row(escape(point.name), f"{point.epsilon:.4f}", f"{point.f1:.4f}", miss, f"{point.f2:.5f}")
    return table


def outcome_table(
    epsilon: float, before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> Table:
    """Return a table of f1 and f2 of one model before and after unlearning, one row per set of images."""
    table = Table("images", title=f"ε = {epsilon:g} asked", title_style="dim")
    for heading in ("f1 before", "f1 reached", "miss", "f2 cost"):
        table.add_column(heading, justify="right")
    for name, (f1, f2) in after.items():
        table.add_row(name, f"{before[name][0]:.4f}", f"{f1:.4f}", f"{f1 - epsilon:+.4f}", f"{f2:.5f}")
    return table


def metric_tables(rows: Sequence[Mapping[str, Any]], where: str) -> Iterator[Table]:
    """Yield a table of the measures of pixels and a table for each extractor, one row per model and set.

    Args:
        rows: of ``metrics.csv``.
        where: words for the pixels that are measured.
    """
    known = ("model", "set", "part", "images")
    columns = [name.partition(":") for name in rows[0] if name not in known]
    counts = dict.fromkeys(f"{row['images']} to {row['set']}" for row in rows)
    for extractor in dict.fromkeys(extractor for *_, extractor in columns):
        title = f"by {extractor}" if extractor else f"{where}; {rows[0]['part']}: {', '.join(counts)}"
        table = Table(title=escape(title), title_style="dim", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("model", no_wrap=True)
        table.add_column("set")
        mine = [column for column in columns if column[2] == extractor]
        for heading, *_ in mine:
            table.add_column(heading.replace("-", " "), justify="right")
        for row in rows:
            values = (f"{row[''.join(column)]:.4g}" for column in mine)
            table.add_row(escape(str(row["model"])), str(row["set"]), *values)
        yield table


def standings_table(family: str, standings: Sequence[Standing], costs: Mapping[str, Cost]) -> Table:
    """Return a table of all methods on validation images, in decreasing order of hypervolume."""
    from ..reproduction.compare import SHARES, STRICT_F2

    pairs = max((standing.pairs for standing in standings), default=0)
    title = (
        f"{family}, validation images, {pairs} gradient pairs: hypervolume up to f2 = {STRICT_F2:g} (HV), f2 at "
        "fractions of the unmodified f1, milliseconds per pair (ms)"
    )
    table = Table(title=escape(title), title_style="dim", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for heading in ("HV", *(f"{share:g}" for share in SHARES), "ms"):
        table.add_column(heading, justify="right")
    for standing in standings:
        seen, cost = standing.seen["validation"], costs.get(standing.method)
        f2 = ("–" if math.isnan(found.mean) else f"{found.mean:.4f}" for found in seen.f2)
        hypervolume = f"{seen.strict.mean:.3f}" + ("" if math.isnan(seen.strict.half) else f" ± {seen.strict.half:.3f}")
        milliseconds = f"{1000 * cost.seconds:.0f}" if cost else "–"
        table.add_row(escape(standing.method), hypervolume, *f2, milliseconds)
    return table


def facts_table(title: str, facts: dict[str, Any]) -> Table:
    """Return a table of names and values, one row each."""
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(escape(name.replace("_", " ")), escape(_said(value)))
    return table


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show each ``UserWarning`` as one yellow sentence, and hide all other warnings."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            err.print(f"[yellow]{escape(str(message))}[/]", soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
