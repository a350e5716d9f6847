"""A figure of our method and all baselines in the same axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

from ..baselines import METHODS
from ..reproduction.table import OURS, RETRAINED, UNMODIFIED, ModelRow
from ..unlearning.pareto import TRAINED, nondominated
from .style import INK, style

__all__ = ["comparison"]

_LEAST_F2 = 1e-4  # the axis is linear below, since f2 may be 0
_MARKERS = "vP^sXD<p>*hd8"


def comparison(rows: Sequence[ModelRow]) -> Figure:
    """Plot f2 against f1 for one family and the first seed; the lower left is better.

    Each trained model has a marker; a line connects each method's nondominated models and mixtures.
    """
    shown = [row for row in rows if row.seed == min(row.seed for row in rows) and row.method != RETRAINED]
    (original,) = (row.f1 for row in shown if row.method == UNMODIFIED)
    with style():
        figure = Figure(figsize=(10.4, 5.6))
        axes = figure.subplots()
        colormap: Any = mpl.colormaps["tab20"]  # a ListedColormap, which has colors
        colours = colormap.colors[: len(METHODS)]
        looks = [(OURS, "o", INK, 2.0), *zip(METHODS, _MARKERS, colours, [0.8] * len(METHODS), strict=True)]
        for name, marker, colour, width in looks:
            if mine := [row for row in shown if row.method == name]:
                label = "ours" if name == OURS else name
                trained = [row for row in mine if row.made_of == TRAINED]
                axes.plot(*_places(_front(mine)), "-", color=colour, linewidth=width)
                axes.plot(*_places(trained), marker, linestyle="", color=colour, markersize=8, label=label)
        axes.axvline(original, color=INK, alpha=0.6, linestyle=":", linewidth=1.6)
        axes.annotate(
            "unmodified", (original, 0.98), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", rotation=90, ha="right", va="top", alpha=0.8,
        )  # fmt: skip
        axes.set_xscale("symlog", linthresh=1.5 * original, linscale=3)  # f1 of gradient ascent methods is not bounded
        axes.set_yscale("symlog", linthresh=_LEAST_F2, linscale=0.3)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.2, subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set(xlabel="f1: what is left of the forgotten", ylabel="f2: damage to the retained")
        axes.set_xlim(0, _limit(row.f1 for row in shown))
        axes.set_ylim(0, _limit(row.f2 for row in shown))
        figure.legend(loc="outside right upper")
        return figure


def _limit(values: Iterable[float]) -> float:
    """Return 1.3 times the largest finite value; models that diverged are not drawn."""
    return 1.3 * max(filter(math.isfinite, values))


def _front(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """Return the nondominated rows with finite values, by rising f1."""
    free = nondominated([row.values for row in rows])
    kept = [row for row, is_free in zip(rows, free, strict=True) if is_free and all(map(math.isfinite, row.values))]
    return sorted(kept, key=lambda row: row.f1)


def _places(rows: Sequence[ModelRow]) -> tuple[list[float], list[float]]:
    return [row.f1 for row in rows], [row.f2 for row in rows]
