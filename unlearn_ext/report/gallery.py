"""What methods make of the same images, one below the other."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..baselines import METHODS
from ..reproduction.pictures import Pictures, Sets
from ..reproduction.table import Row
from .strip import REFERENCES, StripRow, tiles

_SIGNS = {"weight": "w", "epsilon": "ε"}


def gallery_rows(named: Mapping[str, Row], shown: Pictures) -> list[StripRow]:
    """The images, what models are given of them, and a strip a model; those without pictures are left out.

    Args:
        named: models under what to call them.
        shown: their pictures.
    """
    references = {"original": shown.originals(), "corrupted": shown.corrupted()}
    rows = [_row(name, *REFERENCES[name], sets) for name, sets in references.items() if sets is not None]
    models = {name: shown.made(row.method, row.point) for name, row in named.items()}
    return rows + [_row(name, name, _note(named[name]), sets) for name, sets in models.items() if sets is not None]


def _row(name: str, label: str, note: str, sets: Sets) -> StripRow:
    return StripRow(name, label, note, tiles(sets["forget"]), tiles(sets["retain"]), steers=False)


def _note(row: Row) -> str:
    """The value of the knob, and what the model reached on training images."""
    knob = METHODS[row.method].knob if row.method in METHODS else "epsilon"
    said = [] if math.isnan(row.value) else [f"{_SIGNS[knob]} = {row.value:.3g}"]
    said += [f"f1 {row.f1:.3f}", f"f2 {row.f2:.4f}"]
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in said)
