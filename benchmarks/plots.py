"""Roofline plots of a results file: bandwidth of a step (minimum bytes per time), and of a plain copy."""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from table import rows

from unlearn_ext.report.style import INK, style

OURS, PEERS = "#0072b2", ["#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"]  # Okabe–Ito


def bandwidth(row: dict, seconds: float) -> float:
    """Return the bandwidth in GB/s for a step that takes ``seconds``."""
    return row["bytes"] / seconds / 1e9


def roof(row: dict) -> float:
    """Return the bandwidth of the copy in GB/s."""
    return row["copy"]["bytes"] / row["copy"]["median"] / 1e9


def bars(axes: Axes, cases: list[dict], title: str) -> None:
    """Draw a group of bars per case: our step, then the peers; a dashed line is the copy's bandwidth."""
    names = list(dict.fromkeys(n for row in cases for n in row["peers"] if not n.endswith("free")))
    width = 0.8 / (1 + len(names))
    for place, row in enumerate(cases):
        times = {"ours": row["ours"]["median"], **{n: row["peers"][n]["median"] for n in names if n in row["peers"]}}
        for slot, (name, seconds) in enumerate(times.items()):
            color = OURS if name == "ours" else PEERS[names.index(name) % len(PEERS)]
            axes.bar(place - 0.4 + (slot + 0.5) * width, bandwidth(row, seconds), width, color=color)
        axes.hlines(roof(row), place - 0.42, place + 0.42, color=INK, linestyles="--", linewidth=1)
    axes.set_xticks(range(len(cases)), [f"{row['size']}\n{row['dtype']}" for row in cases], fontsize=8)
    axes.set_ylabel("GB/s")
    axes.set_title(title)
    handles = [Patch(color=color) for color in [OURS, *PEERS[: len(names)]]] + [
        Line2D([], [], color=INK, linestyle="--")
    ]
    axes.legend(handles, ["ours", *names, "one large copy"], ncols=4, loc="upper left", bbox_to_anchor=(0, -0.14))


def scaling(axes: Axes, cases: list[dict]) -> None:
    """Draw bandwidth against the number of parameters in 100 tensors, and ten million in other numbers of tensors."""
    by_total = sorted((r for r in cases if r["count"] == 100), key=lambda r: r["total"])
    axes.plot([r["total"] for r in by_total], [bandwidth(r, r["ours"]["median"]) for r in by_total], "o-", color=OURS)
    axes.plot([r["total"] for r in by_total], [roof(r) for r in by_total], "--", color=INK)
    others = {
        row["count"]: (row["total"], bandwidth(row, row["ours"]["median"])) for row in cases if row["count"] != 100
    }
    for place, count in enumerate(sorted(others, key=others.get)):  # left and right in turn: no overlap
        axes.plot(*others[count], "s", color=PEERS[0], markersize=4)
        aside, align = ((-5, 0), "right") if place % 2 else ((5, 0), "left")
        axes.annotate(count, others[count], aside, textcoords="offset points", ha=align, va="center", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("parameters in 100 tensors (squares: in the given number of tensors)")
    axes.set_ylabel("GB/s")
    axes.set_title("SGD step, scaling (dashed: copy of the same number of elements)")


def draw(results: dict, path: Path) -> None:
    """Write ``<path without suffix>-<device>.png`` for each device of a results file."""
    found = [row for row in rows(results) if row["copy"]]
    for device in dict.fromkeys(row["device"] for row in found):
        mine = [row for row in found if row["device"] == device]
        with style():
            figure = Figure(figsize=(10, 13))
            axes = figure.subplots(3, 1)
            large = [row for row in mine if row["suite"] == "step" and row["total"] >= 10**6]
            bars(axes[0], [r for r in large if r["optimizer"] == "sgd"], "SGD step: minimum bytes per time")
            bars(axes[1], [r for r in large if r["optimizer"] == "adamw"], "AdamW step")
            scaling(axes[2], [row for row in mine if row["suite"] == "scaling"])
            figure.savefig(path.with_name(f"{path.stem}-{device}.png"), dpi=70)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    draw(json.loads(file.read_text()), file)
