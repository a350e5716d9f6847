"""How good pictures are, a line a method, averaged over seeds."""

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
    """For each extractor the real images, and the models that stand for their methods; none that were not judged.

    Args:
        rows: of one family, under all seeds.
        judged: of this family.
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
    """Means over the seeds' models; nothing where none was judged."""
    of = {kind: [q for q in judged if q.kind == kind and models.get(q.seed) == (q.method, q.point)] for kind in KINDS}
    if not all(of.values()):
        return {}
    return {kind: {name: interval([getattr(q, name) for q in of[kind]]) for name in MEASURES} for kind in KINDS}
