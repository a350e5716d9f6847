"""The command `audit`: what can still be recovered, relearned or inferred from the models of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .._utils.hub import expanded
from .inputs import prepared_of
from .options import Device, Machine
from .terminal import Watch, out

if TYPE_CHECKING:
    from ..audit import Audit, AuditRow

__all__ = ["audit"]


def audit(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", callback=expanded)],
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Model to audit, such as eps-0.3000. Can be repeated.",
            show_default="the most forgotten asked one, and the one in the middle",
        ),
    ] = None,
    retrained: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model trained without the images to forget, for comparison."),
    ] = None,
    canaries: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with `in`, images known to be in the training set, and `out`, look-alikes that were not.",
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Try to recover, relearn or infer the forgotten, and compare with the unmodified and with a retrained model.

    The numbers are printed and written to `audit.csv` in the run's folder. Finished audits are kept: after an
    interruption, the same command continues.

    For example:

    - `unlearn-ext audit runs/demo`

    - `unlearn-ext audit runs/mine --point eps-0.1000 --retrained checkpoints/without/`
    """
    from ..audit import AUDITS
    from ..audit import audit as audited
    from ..evidence import refresh

    with Watch() as watch:
        prepared = prepared_of(run, Machine(device=device), watch)
    with out.status("", spinner="line") as status:

        def say(stage: str) -> None:
            status.update(stage)
            if not out.is_terminal:
                out.print(stage)

        rows = audited(
            run, prepared.model, prepared.images, task=prepared.task, points=point, retrained=retrained,
            canaries=canaries, progress=say,
        )  # fmt: skip
    refresh(run)
    for each in AUDITS:
        _show(each, [row for row in rows if row.audit == each.name])
    out.print(f"Intervals and numbers of images: {escape(str(run / 'audit.csv'))}", soft_wrap=True)


def _show(audit: Audit, rows: Sequence[AuditRow]) -> None:
    """Print the numbers of an audit, what they say, and what was not run."""
    measured = [row for row in rows if not math.isnan(row.forget)]
    out.print(f"\n[bold]{audit.name}[/]" + (": forgotten / retained" if measured else ""))
    if measured:
        out.print(_table(measured))
    for line in (audit.says, *_reasons(rows)):
        out.print(f"[dim]{escape(line)}[/]")


def _table(rows: Sequence[AuditRow]) -> Table:
    """Return a table with a row per measure, and a column of forgotten / retained per model."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("measure")
    points = list(dict.fromkeys(row.point for row in rows))
    for heading in (*points, "chance"):
        table.add_column(escape(heading), justify="right")
    cells = {(row.measure, row.point): _cell(row.forget, row.retain) for row in rows}
    for measure, chance in {row.measure: row.chance for row in rows}.items():
        table.add_row(escape(measure), *(cells.get((measure, point), "") for point in points), _cell(chance))
    return table


def _reasons(rows: Sequence[AuditRow]) -> Iterator[str]:
    """Yield what was not run and why, with the models that it concerns."""
    notes = dict.fromkeys(row.note for row in rows if row.note.startswith("not run"))
    for note in notes:
        points = ", ".join(row.point for row in rows if row.note == note)
        yield f"{points}: {note}"


def _cell(*numbers: float) -> str:
    return " / ".join(f"{number:.3g}" for number in numbers if not math.isnan(number))
