"""The models that represent their methods in the report, and the models that the studies examine."""

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
    """Choose the trained models that represent their methods.

    They are the unmodified and the retrained model, our least, middle and most forgotten models, and the model of each
    baseline whose f1 is nearest to that of our middle model.

    Args:
        rows: rows of one family and one seed.

    Returns:
        The rows by display name; methods without models are omitted.
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
    """Return the anchors and the models at requested ε of the front in a folder, from the most forgotten on.

    Raises:
        UserError: the folder has no front.
    """
    return [point for point in ParetoFront.from_csv(run / FRONT) if point.role in (MOST_FORGOTTEN, ANCHOR, EPSILON)]


def _apart(row: ModelRow, other: ModelRow) -> float:
    """Return the distance in f1; infinite for a model that diverged."""
    return abs(row.f1 - other.f1) if math.isfinite(row.f1) else math.inf
