"""The part of the report with one family's pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ..baselines.composite import Composite
from ..metrics import load_extractor
from ..metrics.evaluation import FLOOR
from ..reproduction.pictures import Pictures
from ..reproduction.quality import EXTRACTORS, Quality
from ..reproduction.representatives import MIDDLE, chosen
from ..reproduction.table import UNMODIFIED, ModelRow
from ..unlearning.run_folder import FRONT, read_run
from .embedding import embedding
from .gallery import gallery_rows
from .quality import Line, quality_lines
from .strip import StripRow, strip_rows

__all__ = ["Section", "section"]

_MAPPED = (UNMODIFIED, MIDDLE, Composite.name)


@dataclass(frozen=True)
class Section:
    """Pictures and their quality for one family and the first seed; empty or None if no pictures were saved.

    Attributes:
        seed: the first seed.
        gallery: rows of pictures of the models that represent their methods.
        strip: rows of pictures of our front.
        map: t-SNE map of reconstructions by some of these models.
        extractor: feature extractor of the map.
        quality: image quality by extractor and method.
        images: number of evaluated images of each kind.
    """

    seed: int
    gallery: list[StripRow]
    strip: list[StripRow]
    map: Figure | None
    extractor: str
    quality: dict[str, dict[str, Line]]
    images: int


def section(folder: Path, rows: Sequence[ModelRow], judged: Iterable[Quality]) -> Section:
    """Build the section of one family from its rows for all seeds.

    Raises:
        UserError: pictures or a front cannot be read.
    """
    seed = min(row.seed for row in rows)
    named, shown = chosen([row for row in rows if row.seed == seed]), Pictures(folder, rows[0].family, seed)
    judged = [quality for quality in judged if quality.family == rows[0].family]
    return Section(
        seed,
        gallery_rows(named, shown),
        _strip(shown.run) if (shown.run / FRONT).exists() else [],
        _map(named, shown),
        EXTRACTORS[0],
        quality_lines(rows, judged),
        min((quality.images for quality in judged), default=0),
    )


def _strip(folder: Path) -> list[StripRow]:
    run = read_run(folder)
    return strip_rows(run.points, run.samples)


def _map(named: Mapping[str, ModelRow], shown: Pictures) -> Figure | None:
    models = {name: named[name] for name in _MAPPED if name in named}
    panels = {FLOOR: shown.originals()} | {n: shown.made(row.method, row.point) for n, row in models.items()}
    kept = {name: sets for name, sets in panels.items() if sets is not None}
    return embedding(kept, load_extractor(EXTRACTORS[0])) if FLOOR in kept else None
