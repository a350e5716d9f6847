"""A figure of each method's hypervolume, with its confidence interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..reproduction.compare import STRICT_F2, Standing
from ..reproduction.table import OURS
from .style import BLUE, ORANGE, style

__all__ = ["hypervolumes"]

_APART = 0.13  # vertical offset in lines: validation images above, training images below


def hypervolumes(standings: Sequence[Standing]) -> Figure:
    """Plot one line per method, the best at the top; larger values, further right, are better."""
    with style():
        figure = Figure(figsize=(10.4, 0.42 * len(standings) + 1.3))
        axes = figure.subplots()
        places = np.arange(len(standings))
        sides: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
            ("validation images", "validation", -_APART, {"color": BLUE, "marker": "o"}),
            ("training images", "training", _APART, {"color": ORANGE, "marker": "s", "markerfacecolor": "none"}),
        )  # fmt: skip
        for label, kind, offset, look in sides:
            intervals = [s.seen[kind].strict for s in standings]
            means, halves = [i.mean for i in intervals], [i.half for i in intervals]  # NaN with one seed: no error bar
            axes.errorbar(
                means, places + offset, xerr=halves, label=label, linestyle="", capsize=3, clip_on=False, **look
            )
        axes.set_yticks(places, ["ours" if s.method == OURS else s.method for s in standings])
        axes.set(xlabel=f"hypervolume, share of the box to f2 = {STRICT_F2:g}   (1 = all forgotten, no damage)")
        axes.set_ylim(len(standings) - 0.5, -0.5)
        axes.set_xlim(left=0)
        figure.legend(loc="outside upper right", ncols=2)
        return figure
