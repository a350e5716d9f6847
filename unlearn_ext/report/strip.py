"""The picture strip: reconstructions of the same images by every model, from the most to the least forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..unlearning.pareto import ParetoPoint
from ..unlearning.pictures import IS_FORGET
from .style import INK, ORANGE, style

__all__ = ["REFERENCES", "StripRow", "strip_figure", "strip_rows", "tiles"]

_COLUMNS = 8  # per side; more would be too small on a phone
_GAP = 2
_TILE = 0.6  # inches
REFERENCES = {
    "original": ("original", "the complete image"),
    "corrupted": ("corrupted", "the models' input"),
    "unmodified": ("unmodified model", "before unlearning"),
}


@dataclass(frozen=True)
class StripRow:
    """One row of the strip: images to forget on the left, images to retain on the right.

    Attributes:
        name: name of the model or of the reference.
        label: displayed name.
        note: displayed detail, for example f1 and f2.
        sides: tiles, [H, W, RGBA], of images to ``"forget"`` and to ``"retain"``; sides without images are left out.
    """

    name: str
    label: str
    note: str
    sides: dict[str, np.ndarray]


def strip_rows(points: Sequence[ParetoPoint], samples: Mapping[str, np.ndarray]) -> list[StripRow]:
    """Return a row for each reference and model that has pictures.

    Args:
        points: the models.
        samples: pictures by name, as in ``samples.npz``; without images there are no rows.
    """
    if not samples or not len(samples[IS_FORGET]):
        return []
    is_forget = samples[IS_FORGET].astype(bool)
    named = {name: words for name, words in REFERENCES.items() if name in samples}
    named |= {p.name: (p.label, f"f1 {p.f1:.3f} · f2 {p.f2:.4f}") for p in points if p.name in samples}
    masks = {side: mask for side, mask in (("forget", is_forget), ("retain", ~is_forget)) if mask.any()}
    return [
        StripRow(name, label, note, {side: tiles(samples[name][mask]) for side, mask in masks.items()})
        for name, (label, note) in named.items()
    ]


def strip_figure(rows: list[StripRow]) -> Figure:
    """Draw the strip as one figure."""
    with style():
        widths = [side.shape[1] for side in rows[0].sides.values()]
        inches = _TILE / next(iter(rows[0].sides.values())).shape[0]
        figure = Figure(figsize=(sum(widths) * inches + 2.2, (_TILE + 0.05) * len(rows) + 0.4))
        grid = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
        layout = figure.get_layout_engine()
        assert isinstance(layout, ConstrainedLayoutEngine)  # set by style()
        layout.set(h_pad=0.015, w_pad=0.06, hspace=0, wspace=0.02)
        for line, row in zip(grid, rows, strict=True):
            for axes, tiled in zip(line, row.sides.values(), strict=True):
                axes.imshow(tiled, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                axes.grid(False)
            label = f"{row.label}\n{row.note}"
            line[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
        for axes, side in zip(grid[0], rows[0].sides, strict=True):
            axes.set_title(f"to {side}", loc="center", color=ORANGE if side == "forget" else INK)
        return figure


def tiles(images: np.ndarray) -> np.ndarray:
    """Return the first images side by side, [H, W, RGBA], with transparent gaps."""
    images = images[:_COLUMNS]
    channels, height, width = images.shape[1:]
    row = np.zeros((height, max(1, len(images)) * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for index, image in enumerate(images):
        left = index * (width + _GAP)
        row[:, left : left + width, :3] = image.transpose(1, 2, 0) if channels == 3 else image[0, :, :, None]
        row[:, left : left + width, 3] = 255
    return row
