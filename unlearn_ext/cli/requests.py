"""The command that lists the requests of runs that continue each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .terminal import out

if TYPE_CHECKING:
    from ..unlearning.earlier import Earlier

__all__ = ["requests"]


def requests(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or of single models in them.")],
) -> None:
    """List the requests that a model has met, its own and those of the runs that it continued.

    For each request: the run that it comes from, ε, f1 of the unmodified model, f1 when that run ended and f1 now, the
    number of its images, and whether f1 ≤ ε was held in this run.

    Example: `unlearn-ext requests runs/second`
    """
    from ..unlearning.earlier import read_earlier

    for run in runs:
        out.print(_table(read_earlier(run)))


def _table(model: Earlier) -> Table:
    from ..unlearning.earlier import f1_then

    title = escape(f"{model.run.path / model.point}")
    table = Table("request", "since", title=title, title_style="dim", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("ε", "f1 before", "f1 then", "f1 now", "worst", "images"):
        table.add_column(heading, justify="right")
    table.add_column("held", no_wrap=True)
    then = f1_then(model)
    for row in model.requests:
        numbers = (row.epsilon, row.f1_unmodified, then.get(row.request, math.nan), row.f1, row.worst_f1)
        since = row.since or model.folder.name
        table.add_row(escape(row.request), escape(since), *map(_number, numbers), str(row.images), row.held)
    return table


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
