"""Image quality per method, averaged over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from ..metrics.evaluation import FLOOR
from ..reproduction.compare import Interval, interval
from ..reproduction.pictures import KINDS
from ..reproduction.quality import Quality
from ..reproduction.representatives import chosen
from ..reproduction.table import ModelRow

__all__ = ["MEASURES", "Line", "Name", "quality_lines"]

MEASURES = ("fid", "kid", "inception_score", "cosine")

Line = dict[str, dict[str, Interval]]  # by kind and measure
Name = tuple[str, str]  # method and point


def quality_lines(rows: Sequence[ModelRow], judged: Sequence[Quality]) -> dict[str, dict[str, Line]]:
    """Return the quality of the real images and of each method's representative, by extractor and display name.

    Models that were not evaluated are omitted.

    Args:
        rows: rows of one family, for all seeds.
        judged: evaluations of this family's pictures.
    """
    named: dict[str, dict[int, Name]] = {}
    for seed, group in itertools.groupby(rows, lambda row: row.seed):
        stand = {FLOOR: (FLOOR, ""), **{name: (row.method, row.point) for name, row in chosen(list(group)).items()}}
        for name, model in stand.items():
            named.setdefault(name, {})[seed] = model
    lines = {}
    for extractor in dict.fromkeys(quality.extractor for quality in judged):
        mine = [quality for quality in judged if quality.extractor == extractor]
        found = {name: _line(models, mine) for name, models in named.items()}
        lines[extractor] = {name: line for name, line in found.items() if line}
    return lines


def _line(models: Mapping[int, Name], judged: Sequence[Quality]) -> Line:
    """Return the means over the seeds' models; empty if a kind of images was not evaluated."""
    of = {kind: [q for q in judged if q.kind == kind and models.get(q.seed) == (q.method, q.point)] for kind in KINDS}
    if not all(of.values()):
        return {}
    return {kind: {name: interval([getattr(q, name) for q in of[kind]]) for name in MEASURES} for kind in KINDS}
