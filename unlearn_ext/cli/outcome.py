"""What `run` and `sweep` print of the models: f1, the worst image, images above ε, and which need more steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..unlearning.run_folder import RunFolder
    from ..unlearning.tables import RequestRow

__all__ = ["outcome_lines"]


def outcome_lines(run: RunFolder) -> Iterator[RenderableType]:
    """Yield a table of f1 and f2 for a run to one ε, and for every run sentences on its models and requests."""
    if not run.is_sweep:
        yield _table(run)
    if names := ", ".join(point.name for point in run.undertrained):
        yield f"{names}: trained, but another model is better in both f1 and f2. More steps (--steps) may help."
    for point in run.asked:
        for row in run.requests_of(point.name):
            yield escape(_sentence(row, run))


def _table(run: RunFolder) -> Table:
    """Return f1 of the only model for each request, on training and validation images."""
    (point,) = run.points
    named = len(run.requests) > 1
    asked = ", ".join(f"{row.request} {row.epsilon:g}" if named else f"{row.epsilon:g}" for row in run.requests)
    table = Table("images", title=f"ε = {asked} asked", title_style="dim")
    for heading in ("f1 before", "f1 reached", "miss", "f2 cost"):
        table.add_column(heading, justify="right")
    for number, row in enumerate(run.requests):
        if not row.is_at_hand:
            continue
        name = f"{row.request}, " if named else ""
        f2 = f"{point.f2:.5f}" if number == 0 else ""
        values = (f"{row.f1_unmodified:.4f}", f"{row.f1:.4f}", f"{row.f1 - row.epsilon:+.4f}", f2)
        table.add_row(escape(f"{name}training"), *values)
        if not math.isnan(row.f1_validation):
            f2 = f"{point.f2_validation:.5f}" if number == 0 else ""
            values = ("", f"{row.f1_validation:.4f}", f"{row.f1_validation - row.epsilon:+.4f}", f2)
            table.add_row(escape(f"{name}validation"), *values)
    return table


def _sentence(row: RequestRow, run: RunFolder) -> str:
    name = f"{row.request}, {row.point}" if run.is_sweep else row.request
    if not row.is_at_hand:
        return (
            f"{name}: its images are not at hand, so f1 ≤ {row.epsilon:.4g}, which {row.since} reached, is neither "
            "held nor measured."
        )
    many = f"{row.images} images used" if row.images > 1 else "1 image used"
    above = "none is" if row.above == 0 else "1 is" if row.above == 1 else f"{row.above} are"
    unused = f"{row.held_out} held out, {row.left_out} left out"
    return (
        f"{name}: of {many} ({unused}), {above} above ε = {row.epsilon:.4g}; the worst is {row.worst_file} with f1 = "
        f"{row.worst_f1:.4g}."
    )
