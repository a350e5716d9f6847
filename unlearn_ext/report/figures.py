"""Figures of a run: the Pareto front, f1 against the target ε, and the training curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..unlearning.pareto import TRAINED
from ..unlearning.run_folder import CURVES, RunFolder
from .style import GREEN, INK, ORANGE, VERMILION, shades, style

__all__ = ["convergence", "front", "log_floor", "steering"]

_MISS_ALLOWED = 0.03  # half the width of the green band, as a share of the range of f1
_TITLES = {
    "f1": "f1 · what is left of the forgotten",
    "f2": "f2 · damage to the retained",
    "psi": "ψ · demanded decrease of f1",
    "lam": "λ · weight of f1's gradient",
}


def front(run: RunFolder) -> Figure:
    """Plot f2 against f1, one point per model; the lower left is better."""
    points = run.points
    with style():
        figure = Figure(figsize=(5.8, 4.8))
        axes = figure.subplots()
        f1, f2 = [p.f1 for p in points], [p.f2 for p in points]
        axes.plot(f1, f2, color=INK, alpha=0.35, linewidth=1.5, zorder=2)
        for point, shade in zip(points, shades(len(points)), strict=True):
            trained = point.made_of == TRAINED
            axes.scatter(
                point.f1, point.f2, s=90 if trained else 64, color=[shade], marker="D" if trained else "o",
                edgecolor="white", linewidth=0.8, zorder=4,
            )  # fmt: skip
        axes.plot(
            [p.f1_validation for p in points], [p.f2_validation for p in points], "o--", color=ORANGE, linewidth=1.2,
            markersize=6, markerfacecolor="none", markeredgewidth=1.4, zorder=5,
        )  # fmt: skip
        worse = run.worse
        axes.scatter(
            [p.f1 for p in worse], [p.f2 for p in worse], s=130, marker="x", color=VERMILION, linewidth=2, zorder=6,
        )  # fmt: skip
        _log_when_wide(axes, [*f2, *(p.f2_validation for p in points)])
        original = float(run.metrics["f1_original"])
        axes.axvline(original, color=INK, alpha=0.6, linestyle=":", linewidth=1.6)
        axes.annotate(
            "unmodified", (original, 0.98), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", rotation=90, ha="right", va="top", alpha=0.8,
        )  # fmt: skip
        axes.set(xlabel="f1: what is left of the forgotten", ylabel="f2: damage to the retained")
        axes.set_xlim(left=min(0.0, *f1))
        _legend(axes, dominated=bool(worse))
        return figure


def steering(run: RunFolder) -> Figure:
    """Plot f1 against the target ε; on the diagonal, f1 equals ε."""
    with style():
        figure = Figure(figsize=(5.8, 4.8))
        axes = figure.subplots()
        ends = np.array([min(0.0, *(p.f1 for p in run.points)), max(p.f1 for p in run.points)]) * 1.04
        allowed = _MISS_ALLOWED * run.span
        axes.fill_between(ends, ends - allowed, ends + allowed, color=GREEN, alpha=0.16, linewidth=0,
                          label=f"within {_MISS_ALLOWED:.0%} of the range of f1")  # fmt: skip
        axes.plot(ends, ends, color=GREEN, linewidth=1.2, label="f1 = ε")
        for point, shade in zip(run.points, shades(len(run.points)), strict=True):
            axes.scatter(point.epsilon, point.f1, s=64, color=[shade], edgecolor="white", linewidth=0.8, zorder=4)
        axes.scatter(
            [p.epsilon for p in run.points], [p.f1_validation for p in run.points], s=34, facecolor="none",
            edgecolor=ORANGE, linewidth=1.4, zorder=5, label="validation images",
        )  # fmt: skip
        axes.set(xlabel="target ε", ylabel="f1", xlim=ends, ylim=ends)
        axes.legend(loc="upper left")
        return figure


def convergence(run: RunFolder) -> Figure:
    """Plot f1, f2, ψ and λ over the steps: for each model the values (faint) and their running mean (bold)."""
    with style():
        figure = Figure(figsize=(10.4, 6.4))
        layout = figure.get_layout_engine()
        assert isinstance(layout, ConstrainedLayoutEngine)  # set by style()
        layout.set(hspace=0.1, wspace=0.05)
        panels = dict(zip(CURVES, figure.subplots(2, 2).flat, strict=True))
        for point, shade in zip(run.points, shades(len(run.points)), strict=True):
            curves = run.history.get(point.name)
            if curves is None:
                continue
            for name, axes in panels.items():
                axes.plot(curves["step"], curves[name], color=shade, alpha=0.18, linewidth=0.7)
                axes.plot(*_running_mean(curves["step"], curves[name]), color=shade, linewidth=1.6, label=point.label)
            panels["f1"].axhline(point.epsilon, color=shade, linestyle=":", linewidth=1)
        for name, axes in panels.items():
            axes.set_title(_TITLES[name])
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _focus(panels["psi"], run, "psi")
        panels["lam"].set_yscale("symlog", linthresh=0.01, linscale=0.4)  # spans decades, and is often exactly 0
        panels["lam"].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels["lam"].set_ylim(bottom=0)
        _log_when_wide(panels["f2"], [v for c in run.history.values() for v in c["f2"]])
        for axes in (panels["psi"], panels["lam"]):
            axes.set_xlabel("step")
        handles, labels = panels["f1"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))))
        return figure


def _legend(axes: Axes, *, dominated: bool) -> None:
    middle = shades(3)[1]
    axes.plot([], [], "D", color=middle, label="trained model; training images")
    axes.plot([], [], "o", color=middle, label="mixture of two models; training images")
    axes.plot([], [], "o--", color=ORANGE, markerfacecolor="none", label="the same models; validation images")
    if dominated:
        axes.plot([], [], "x", color=VERMILION, label="dominated: another model is better in both")
    axes.legend(loc="best")


def log_floor(values: Sequence[float]) -> float | None:
    """Return where a log axis for these values begins; None if they need no log axis.

    They need one if the largest is at least twenty times the 2 % quantile of the positive ones.
    """
    positive = np.array([v for v in values if np.isfinite(v) and v > 0])
    if positive.size == 0 or positive.max() < 20 * np.quantile(positive, 0.02):
        return None
    return float(np.quantile(positive, 0.02) / 1.5)


def _log_when_wide(axes: Axes, values: Sequence[float]) -> None:
    floor = log_floor(values)
    if floor is None:
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylim(bottom=floor)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _focus(axes: Axes, run: RunFolder, name: str) -> None:
    """Limit the axis to the 1 % to 99 % quantiles, so that a few outliers do not flatten all lines."""
    values = np.concatenate([curves[name] for curves in run.history.values()] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return
    low, high = np.quantile(values, (0.01, 0.99))
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _running_mean(step: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = max(1, len(values) // 25)
    return step[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")
