"""Which models are shown where not all can be, and which ones the studies ask about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..baselines import METHODS
from ..unlearning.pareto import ANCHOR, EPSILON, MOST_FORGOTTEN, TRAINED, ParetoFront, ParetoPoint
from ..unlearning.run_folder import FRONT
from .table import OURS, REFERENCES, ModelRow

__all__ = ["MIDDLE", "chosen", "studied"]

MIDDLE = "ours, middle"


def chosen(rows: Sequence[ModelRow]) -> dict[str, ModelRow]:
    """The unmodified and the retrained model, three of ours, and of every baseline the one whose f1 is nearest to our
    middle one's; trained models alone.

    Args:
        rows: of one family under one seed.

    Returns:
        A row each under what to call it; a method without models is left out.
    """
    trained = [row for row in rows if row.made_of == TRAINED]
    named = {row.method: row for row in trained if row.method in REFERENCES}
    ours = [row for row in trained if row.method == OURS]  # from the least forgotten to the most
    if not ours:
        return named
    middle = ours[len(ours) // 2]
    named |= {"ours, most forgotten": ours[-1], MIDDLE: middle, "ours, least forgotten": ours[0]}
    for method in METHODS:
        if mine := [row for row in trained if row.method == method]:
            named[method] = min(mine, key=lambda row: _apart(row, middle))
    return named


def studied(run: Path) -> list[ParetoPoint]:
    """Return the anchors and the ε that were asked for of our front in its folder, from the most forgotten on.

    Raises:
        UserError: no front is there.
    """
    return [point for point in ParetoFront.from_csv(run / FRONT) if point.role in (MOST_FORGOTTEN, ANCHOR, EPSILON)]


def _apart(row: ModelRow, other: ModelRow) -> float:
    """In f1; a model that diverged is infinitely far."""
    return abs(row.f1 - other.f1) if math.isfinite(row.f1) else math.inf
