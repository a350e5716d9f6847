"""What methods make of the same images, one below the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..baselines import METHODS
from ..reproduction.pictures import Pictures, Sets
from ..reproduction.studies.infill import WHOLE, Infilled
from ..reproduction.table import UNMODIFIED, ModelRow
from .strip import REFERENCES, StripRow, tiles

__all__ = ["gallery_rows", "infill_rows"]

_SIGNS = {"weight": "w", "tau": "τ", "epsilon": "ε"}


def gallery_rows(named: Mapping[str, ModelRow], shown: Pictures) -> list[StripRow]:
    """The images, what models are given of them, and a strip a model; those without pictures are left out.

    Args:
        named: models under what to call them.
        shown: their pictures.
    """
    made = {name: (name, _note(row), shown.made(row.method, row.point)) for name, row in named.items()}
    return _rows(_given(shown) | made)


def infill_rows(infilled: Sequence[Infilled], shown: Pictures) -> list[StripRow]:
    """The images, what models are given of them, the unmodified model, and a strip a target and ε, likewise.

    Args:
        infilled: the models of one family.
        shown: their pictures.
    """
    made = {UNMODIFIED: (*REFERENCES[UNMODIFIED], shown.made(UNMODIFIED, ""))}
    for answer in infilled:
        if answer.share != WHOLE:
            note = _joined(f"ε = {answer.share:g} f1₀", f"f2 {answer.f2:.4f}")
            made[" ".join(answer.pictures)] = (answer.target, note, shown.made(*answer.pictures))
    return _rows(_given(shown) | made)


_Said = tuple[str, str, Sets | None]  # label, note, pictures


def _given(shown: Pictures) -> dict[str, _Said]:
    references = {"original": shown.originals(), "corrupted": shown.corrupted()}
    return {name: (*REFERENCES[name], sets) for name, sets in references.items()}


def _rows(named: Mapping[str, _Said]) -> list[StripRow]:
    """Of those that have pictures."""
    return [
        StripRow(name, label, note, tiles(sets["forget"]), tiles(sets["retain"]), steers=False)
        for name, (label, note, sets) in named.items()
        if sets is not None
    ]


def _note(row: ModelRow) -> str:
    """The value of the knob, and what the model reached on training images."""
    knob = METHODS[row.method].knob if row.method in METHODS else "epsilon"
    said = [] if math.isnan(row.value) else [f"{_SIGNS[knob]} = {row.value:.3g}"]
    return _joined(*said, f"f1 {row.f1:.3f}", f"f2 {row.f2:.4f}")


def _joined(*said: str) -> str:
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in said)
