"""The picture strip: reconstructions of the same images by every model, from the most to the least forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..unlearning.run_folder import RunFolder
from .style import ORANGE, style

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
    """One row of the strip: forget images on the left, retain images on the right.

    Attributes:
        name: name of the model or of the reference.
        label: displayed name.
        note: displayed detail, for example f1 and f2.
        forget: tiles of the forget images, [H, W, RGBA].
        retain: tiles of the retain images, [H, W, RGBA].
        steers: whether the page's slider includes this row.
    """

    name: str
    label: str
    note: str
    forget: np.ndarray
    retain: np.ndarray
    steers: bool


def strip_rows(run: RunFolder) -> list[StripRow]:
    """Return a row for each reference and model whose pictures the run saved."""
    is_forget = run.samples["is_forget"].astype(bool)
    named = {name: words for name, words in REFERENCES.items() if name in run.samples}
    named |= {p.name: (p.label, f"f1 {p.f1:.3f} · f2 {p.f2:.4f}") for p in run.points if p.name in run.samples}
    return [
        StripRow(
            name,
            label,
            note,
            tiles(run.samples[name][is_forget]),
            tiles(run.samples[name][~is_forget]),
            steers=name not in REFERENCES,
        )
        for name, (label, note) in named.items()
    ]


def strip_figure(rows: list[StripRow]) -> Figure:
    """Draw the strip as one figure."""
    with style():
        widths = [rows[0].forget.shape[1], rows[0].retain.shape[1]]
        inches = _TILE / rows[0].forget.shape[0]
        figure = Figure(figsize=(sum(widths) * inches + 2.2, (_TILE + 0.05) * len(rows) + 0.4))
        grid = figure.subplots(len(rows), 2, squeeze=False, width_ratios=widths)
        layout = figure.get_layout_engine()
        assert isinstance(layout, ConstrainedLayoutEngine)  # set by style()
        layout.set(h_pad=0.015, w_pad=0.06, hspace=0, wspace=0.02)
        for (left, right), row in zip(grid, rows, strict=True):
            for axes, tiles in ((left, row.forget), (right, row.retain)):
                axes.imshow(tiles, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                axes.grid(False)
            left.set_ylabel(f"{row.label}\n{row.note}", rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
        grid[0, 0].set_title("to forget", loc="center", color=ORANGE)
        grid[0, 1].set_title("to retain", loc="center")
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
