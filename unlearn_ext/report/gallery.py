"""Rows of pictures that show different models' reconstructions of the same images."""

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
    """Return the rows of the original and corrupted images and of each model that has pictures.

    Args:
        named: models by display name.
        shown: saved pictures.
    """
    made = {name: (name, _note(row), shown.made(row.method, row.point)) for name, row in named.items()}
    return _rows(_given(shown) | made)


def infill_rows(infilled: Sequence[Infilled], shown: Pictures) -> list[StripRow]:
    """Return the rows of the original and corrupted images, the unmodified model, and each target and ε.

    Models without pictures are omitted.

    Args:
        infilled: the models of one family.
        shown: saved pictures.
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
    """Return the rows of the entries that have pictures."""
    return [
        StripRow(name, label, note, {side: tiles(sets[side]) for side in ("forget", "retain")})
        for name, (label, note, sets) in named.items()
        if sets is not None
    ]


def _note(row: ModelRow) -> str:
    """Return the value of the method's knob, and f1 and f2 over training images."""
    knob = METHODS[row.method].knob if row.method in METHODS else "epsilon"
    said = [] if knob is None or math.isnan(row.value) else [f"{_SIGNS[knob]} = {row.value:.3g}"]
    return _joined(*said, f"f1 {row.f1:.3f}", f"f2 {row.f2:.4f}")


def _joined(*said: str) -> str:
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in said)
