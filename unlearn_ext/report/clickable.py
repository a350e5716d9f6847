"""The Pareto front as an SVG whose dots can be chosen: the places of its marks, for ``front.html``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.ticker import LogLocator, MaxNLocator

from ..unlearning.pareto import TRAINED, ParetoPoint
from ..unlearning.run_folder import RunFolder
from .figures import log_floor
from .style import shades

__all__ = ["Chart", "Dot", "chart"]

# Units of the SVG. They are small, so that the text can still be read if the chart is as wide as a phone.
WIDTH, HEIGHT = 400, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 388, 12, 276


@dataclass(frozen=True)
class Dot:
    """The mark of a model.

    Attributes:
        point: the model.
        x: horizontal position.
        y: vertical position.
        colour: colour as ``#rrggbb``.
        is_trained: whether the model was trained, not mixed.
        is_worse: whether another model dominates it.
    """

    point: ParetoPoint
    x: float
    y: float
    colour: str
    is_trained: bool
    is_worse: bool


@dataclass(frozen=True)
class Chart:
    """Places of all marks; positions are pairs (x, y).

    Attributes:
        dots: one mark for each model, from the most to the least forgotten.
        validation: positions of the models on validation images.
        across: position and label of the ticks of f1.
        upwards: position and label of the ticks of f2.
        original: horizontal position of f1 of the unmodified model.
    """

    dots: list[Dot]
    validation: list[tuple[float, float]]
    across: list[tuple[float, str]]
    upwards: list[tuple[float, str]]
    original: float
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class _Axis:
    """A linear or logarithmic scale from values to positions."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value; values beyond the axis are at its end."""
        low, high, value = (self._scaled(part) for part in (self.low, self.high, value))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return positions and labels of about five ticks."""
        locator = LogLocator(subs=self._subs()) if self.is_log else MaxNLocator(5)
        values = [value for value in locator.tick_values(self.low, self.high) if self.low <= value <= self.high]
        return [(self.place(value), f"{value:g}") for value in values]

    def _scaled(self, value: float) -> float:
        return math.log(max(value, self.low)) if self.is_log else value

    def _subs(self) -> tuple[int, ...]:
        return (1, 2, 5) if self.high < 100 * self.low else (1,)


def chart(run: RunFolder) -> Chart:
    """Return the places of the models' marks: f1 to the right, f2 upwards."""
    points, original = run.points, float(run.metrics["f1_original"])
    seen = [(p.f1_validation, p.f2_validation) for p in points]
    seen = [pair for pair in seen if all(map(math.isfinite, pair))]
    across = _linear([original, *(p.f1 for p in points), *(f1 for f1, _ in seen)], _LEFT, _RIGHT)
    upwards = _upwards([*(p.f2 for p in points), *(f2 for _, f2 in seen)])
    worse = run.worse
    dots = [
        Dot(p, across.place(p.f1), upwards.place(p.f2), to_hex(shade), p.made_of == TRAINED, p in worse)
        for p, shade in zip(points, shades(len(points)), strict=True)
    ]
    validation = [(across.place(f1), upwards.place(f2)) for f1, f2 in seen]
    return Chart(dots, validation, across.ticks(), upwards.ticks(), across.place(original))


def _linear(values: Sequence[float], start: float, end: float) -> _Axis:
    low, high = min(0.0, *values), max(0.0, *values)
    return _Axis(low, high + 0.04 * (high - low) or 1.0, start, end)


def _upwards(values: Sequence[float]) -> _Axis:
    floor = log_floor(values)
    if floor is None:
        return _linear(values, _BOTTOM, _TOP)
    return _Axis(floor, 1.3 * float(np.max(values)), _BOTTOM, _TOP, is_log=True)
