"""Ours and every baseline in the same axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

from ..baselines import METHODS
from ..reproduction.table import OURS, UNMODIFIED, Row
from .style import INK, style

_LEAST_F2 = 1e-4  # below, the axis is linear: f2 may be 0
_MARKERS = "vP^sXD<p>*hd8"


def comparison(rows: Sequence[Row]) -> Figure:
    """f2 against f1 of all models of one family, those of the first seed; the lower left the better."""
    shown = [row for row in rows if row.seed == min(row.seed for row in rows)]
    (original,) = (row.f1 for row in shown if row.method == UNMODIFIED)
    with style():
        figure = Figure(figsize=(10.4, 5.6))
        axes = figure.subplots()
        ours = [row for row in shown if row.method == OURS]
        axes.plot(*_places(ours), "o-", color=INK, linewidth=2, markersize=8, label="ours")
        colours = mpl.colormaps["tab20"].colors[: len(METHODS)]
        for name, marker, colour in zip(METHODS, _MARKERS, colours, strict=True):
            if mine := sorted((row for row in shown if row.method == name), key=lambda row: row.value):
                axes.plot(*_places(mine), marker, linestyle=":", linewidth=0.8, color=colour, markersize=8, label=name)
        axes.axvline(original, color=INK, alpha=0.6, linestyle=":", linewidth=1.6)
        axes.annotate(
            "unmodified", (original, 0.98), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", rotation=90, ha="right", va="top", alpha=0.8,
        )  # fmt: skip
        axes.set_xscale("symlog", linthresh=1.5 * original, linscale=3)  # methods that ascend know no end
        axes.set_yscale("symlog", linthresh=_LEAST_F2, linscale=0.3)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.2, subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set(xlabel="f1   (0 = forgotten)", ylabel="f2   (0 = nothing lost)")
        axes.set_xlim(0, _room(row.f1 for row in shown))
        axes.set_ylim(0, _room(row.f2 for row in shown))
        figure.legend(loc="outside right upper")
        return figure


def _room(values: Iterable[float]) -> float:
    """A little more than the largest; a model that diverged is beyond any axis."""
    return 1.3 * max(filter(math.isfinite, values))


def _places(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row.f1 for row in rows], [row.f2 for row in rows]
