"""Which models stand for all where there is no room for more."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..baselines import METHODS
from .table import OURS, UNMODIFIED, Row

MIDDLE = "ours, middle"


def chosen(rows: Sequence[Row]) -> dict[str, Row]:
    """The unmodified model, three of our front, and of every baseline the one whose f1 is nearest to our middle one's.

    Args:
        rows: of one family under one seed.

    Returns:
        A row each under what to call it; a method without models is left out.
    """
    named = {row.method: row for row in rows if row.method == UNMODIFIED}
    ours = [row for row in rows if row.method == OURS]
    if not ours:
        return named
    middle = ours[len(ours) // 2]
    named |= {"ours, most forgotten": ours[0], MIDDLE: middle, "ours, least forgotten": ours[-1]}
    for method in METHODS:
        if mine := [row for row in rows if row.method == method]:
            named[method] = min(mine, key=lambda row: _apart(row, middle))
    return named


def _apart(row: Row, other: Row) -> float:
    """In f1; a model that diverged is infinitely far."""
    return abs(row.f1 - other.f1) if math.isfinite(row.f1) else math.inf
