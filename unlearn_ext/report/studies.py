"""The figures and the picture strip of the additional studies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..audit.relearning import FEW
from ..reproduction.pictures import Pictures
from ..reproduction.representatives import studied
from ..reproduction.studies import Convergence, Crops, Infill, Probe, Readers, Resurfacing, Study
from ..reproduction.studies.convergence import EPSILON, INFIMUM
from ..reproduction.studies.probe import MEMBER, SET
from ..reproduction.studies.resurfacing import FEW_FORGET, RETAIN
from ..reproduction.table import UNMODIFIED, ModelRow, Table
from .gallery import infill_rows
from .strip import StripRow
from .style import GREEN, INK, ORANGE, VERMILION, shades, style

__all__ = ["infill_strip", "readers", "study_figures"]

_COLOURS = (VERMILION, ORANGE, GREEN, "#56b4e9", "#cc79a7")  # Okabe–Ito colours visible on white and on black
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def study_figures(folder: Path, rows: Sequence[ModelRow]) -> dict[str, Figure]:
    """Draw the figures of one family's completed studies, by name of the study.

    Args:
        folder: folder of the experiment.
        rows: rows of the family in the main table.

    Raises:
        UserError: a table cannot be read.
    """
    figures: dict[Any, Callable[..., Figure]] = {
        Convergence: _convergence, Resurfacing: _resurfacing, Probe: _probe, Crops: _crops,
    }  # fmt: skip
    family, seed = rows[0].family, min(row.seed for row in rows)
    drawn = {}
    for study, figure in figures.items():
        if mine := _answers(folder, study, family):
            with style():
                drawn[study.name] = figure(mine, _models(folder, rows, seed))
    return drawn


def readers(folder: Path, family: str) -> list[Any]:
    """Return the rows of the study ``readers`` for one family; empty if the study was not run.

    Raises:
        UserError: the table cannot be read.
    """
    return _answers(folder, Readers, family)


def infill_strip(folder: Path, rows: Sequence[ModelRow]) -> list[StripRow]:
    """Return the picture rows of the study ``infill`` for one family; empty if the study was not run.

    Raises:
        UserError: the table or the pictures cannot be read.
    """
    family, seed = rows[0].family, min(row.seed for row in rows)
    infilled = _answers(folder, Infill, family)
    return infill_rows(infilled, Pictures(folder, family, seed)) if infilled else []


class _Models(NamedTuple):
    """The models that the studies examine, from the most to the least forgotten."""

    epsilons: dict[str, float]  # ε by name of the model
    unmodified: float  # f1 of the unmodified model

    @property
    def middle(self) -> float:
        """ε in the middle of the front."""
        return list(self.epsilons.values())[len(self.epsilons) // 2]


def _models(folder: Path, rows: Sequence[ModelRow], seed: int) -> _Models:
    """Read the models of our front."""
    (original,) = (row.f1 for row in rows if row.method == UNMODIFIED and row.seed == seed)
    points = studied(Pictures(folder, rows[0].family, seed).run)
    return _Models({point.name: point.epsilon for point in points}, original)


def _answers(folder: Path, study: type[Study], family: str) -> list[Any]:
    answers = Table(folder / f"{study.name}.csv", study.row).rows.values()
    return [answer for answer in answers if answer.family == family]


def _convergence(steps: Sequence[Any], models: _Models) -> Figure:
    """Plot f1 and f2 of each step's minibatch, with a row of panels per phase and a line per δ."""
    figure = Figure(figsize=(10.4, 6.4))
    deltas = sorted({step.delta for step in steps})
    for phase, row in zip((INFIMUM, EPSILON), figure.subplots(2, 2), strict=True):
        for name, axes in zip(("f1", "f2"), row, strict=True):
            for delta, colour, dashes in zip(deltas, _COLOURS, _DASHES, strict=False):
                mine = [step for step in steps if (step.phase, step.delta) == (phase, delta)]
                places = [step.step for step in mine], [getattr(step, name) for step in mine]
                axes.plot(*places, color=colour, linestyle=dashes, linewidth=1.6, label=f"δ = {delta:g}")
            axes.set_title(f"Phase {phase} · {name}")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if phase == INFIMUM:
            row[0].set_yscale("log")
        else:
            row[0].axhline(models.middle, color=INK, alpha=0.6, linestyle=":", linewidth=1.6)
            for axes in row:
                axes.set_xlabel("step")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(deltas))
    return figure


def _resurfacing(relearned: Sequence[Any], models: _Models) -> Figure:
    """Plot f1 against training steps, with a panel per training set and a line per model."""
    figure = Figure(figsize=(10.4, 4.6))
    titles = {RETAIN: "trained on images to retain", FEW_FORGET: f"trained on {FEW} images to forget"}
    for (data, title), axes in zip(titles.items(), figure.subplots(1, 2, sharey=True), strict=True):
        for name, label, shade in _lines(models, {row.point for row in relearned}):
            mine = [row for row in relearned if (row.point, row.data) == (name, data)]
            dashes = "--" if name == UNMODIFIED else "-"
            places = [row.steps for row in mine], [row.f1 for row in mine]
            axes.plot(*places, "o", linestyle=dashes, color=shade, linewidth=1.6, markersize=5, label=label)
        axes.set(title=title, xlabel="training steps")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.axes[0].set_ylabel("f1 of validation images   (0 = all forgotten)")
    figure.axes[0].set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _probe(read: Sequence[Any], models: _Models) -> Figure:
    """Plot accuracy against ε, with a line per question; the unmodified model is at its f1."""
    figure = Figure(figsize=(10.4, 4.4))
    axes = figure.subplots()
    places = models.epsilons | {UNMODIFIED: models.unmodified}
    titles = {SET: "to forget or to retain?", MEMBER: "training image or held out?"}
    for (question, title), colour, marker in zip(titles.items(), (GREEN, VERMILION), "os", strict=True):
        mine = sorted((places[row.point], row.accuracy) for row in read if row.question == question)
        axes.plot(*zip(*mine, strict=True), f"{marker}-", color=colour, linewidth=1.6, markersize=7, label=title)
    chance = 2 * 0.5 / (2 * min(row.images for row in read)) ** 0.5  # two standard errors of guessing
    axes.axhspan(0.5 - chance, 0.5 + chance, color=INK, alpha=0.08, linewidth=0)
    axes.axhline(0.5, color=INK, alpha=0.6, linestyle="--", linewidth=1.2)
    axes.axvline(models.unmodified, color=INK, alpha=0.6, linestyle=":", linewidth=1.6, label="unmodified model")
    axes.set(xlabel="ε, the target for f1   (0 = all forgotten)", ylabel="accuracy")
    axes.set_xlim(left=0)
    axes.set_ylim(top=1.02)
    figure.legend(loc="outside right upper")
    return figure


def _crops(crops: Sequence[Any], models: _Models) -> Figure:
    """Plot f2 against f1, as a share of the unmodified model's f1, with a front per size of the hidden area."""
    figure = Figure(figsize=(10.4, 4.6))
    axes = figure.subplots()
    for fraction, colour, marker in zip(sorted({crop.fraction for crop in crops}), _COLOURS, "os^vD", strict=False):
        mine = [crop for crop in crops if crop.fraction == fraction]
        (original,) = (crop.f1 for crop in mine if crop.point == UNMODIFIED)
        places = [crop.f1 / original for crop in mine], [crop.f2 for crop in mine]
        order = sorted(zip(*places, strict=True))
        axes.plot(
            *zip(*order, strict=True), f"{marker}-", color=colour, linewidth=1.6, markersize=7,
            label=f"{fraction:g} of each side hidden",
        )  # fmt: skip
    axes.set_yscale("symlog", linthresh=1e-3, linscale=0.5)  # linear near 0, which is f2 of the unmodified models
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel="f1 as a share of the unmodified model's f1", ylabel="f2: damage to the retained")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper")
    return figure


def _lines(models: _Models, names: Collection[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield name, label and colour of a study's models, from the most to the least forgotten, then unmodified."""
    ours = [name for name in models.epsilons if name in names]
    for name, shade in zip(ours, shades(len(ours)), strict=True):
        yield name, f"ε = {models.epsilons[name]:.3g}", shade
    yield UNMODIFIED, UNMODIFIED, INK
