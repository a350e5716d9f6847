"""The report page of a run."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._utils.atomic_io import write_text
from ..errors import UserError
from ..unlearning.pictures import BLURRED, allowed, check_choice, lower
from ..unlearning.recommend import recommend
from ..unlearning.run_folder import RunFolder, read_run
from ..unlearning.tables import RequestRow
from .clickable import chart
from .figures import convergence, front, steering
from .saving import remove_figures, save_figures
from .strip import StripRow, strip_figure, strip_rows
from .template import render

__all__ = ["write_page"]

Table = list[dict[str, str]]

_FILES = {
    "front.csv": "the models: ε, f1, f2, and what each is made of",
    "requests.csv": "the requests: ε and f1 of each, for each model",
    "per_image.csv": "f1 of each image to forget",
    "images.csv": "the images, and what each was used for",
    "metrics.csv": "image metrics of each model, by unlearn-ext evaluate",
    "audit.csv": "attempts to get back what was forgotten, by unlearn-ext audit",
    "evidence.html": "the evidence, as a page to print",
    "evidence.json": "the evidence, for programs",
    "history.csv": "f1, f2, ψ and λ of each step",
    "metrics.json": "settings and totals",
}


def write_page(run_folder: str | Path, pictures: str | None) -> Path:
    """Write ``report.html`` and its figures; return the path of the page.

    Args:
        run_folder: folder of the run.
        pictures: which pictures to show, one of :data:`unlearn_ext.unlearning.pictures.CHOICES`; None for the choice of
            the run, or ``"blurred"`` if the run made none. Warns if the folder holds less.
    """
    run = read_run(run_folder)
    choice = _choice(run, pictures)
    strips = _strips(run, choice)
    audit = _table(run.path / "audit.csv", "audits")
    single = len(run.points) == 1
    downloads = {name: content for name, content in _FILES.items() if (run.path / name).is_file()}
    plots = {"convergence": convergence(run)} | ({} if single else {"steering": steering(run)})
    figures = plots | ({} if single else {"front": front(run)})
    figures |= {"strip": strip_figure(strips["training"])} if "training" in strips else {}
    save_figures(run.path / "figures", figures)
    remove_figures(run.path / "figures", {"front", "steering", "strip"} - set(figures))
    page = run.path / "report.html"
    html = render(
        "page.html",
        plots,
        run=run,
        metrics=run.metrics,
        points=run.points,
        single=single,
        reach=None if single else run.span,
        settings=_flat(run.metrics.get("settings", {})),
        sections=_sections(single, bool(run.requests), bool(audit)),
        pictures=choice,
        strips=strips,
        chart=None if single else chart(run),
        recommended=None if single else recommend(run),
        requests=run.requests,
        worst=_worst(run.requests),
        audit=audit,
        downloads=downloads,
    )
    write_text(page, html)
    return page


def _sections(single: bool, has_requests: bool, has_audit: bool) -> dict[str, str]:
    """Return the titles of the page's sections by template, in the order of the page."""
    requests = {"requests": "What was asked for"}
    models = {
        "choose": "Pictures" if single else "Choose a model",
        "promises": "Promises",
        "models": "The model" if single else "All models",
    }
    others = {
        "audit": "Audit",
        "destroy": "What to destroy",
        "load": "Load a model",
        "downloads": "Files",
        "curves": "Training curves",
        "settings": "Settings",
        "glossary": "Glossary",
    }
    # The table of all models of a sweep already shows what was asked and reached.
    titles = {**requests, **models, **others} if single else {**models, **requests, **others}
    left_out = {name for name, is_there in (("requests", has_requests), ("audit", has_audit)) if not is_there}
    return {name: title for name, title in titles.items() if name not in left_out}


def _choice(run: RunFolder, asked: str | None) -> str:
    """Return which pictures to show: at most those that the folder holds."""
    if asked is None:
        return str(run.metrics.get("pictures", BLURRED))
    check_choice(asked)
    shown = lower(asked, run.pictures)
    if shown != asked:
        warnings.warn(
            f"the report shows the pictures `{shown}`, because this run saved no more; for `{asked}`, repeat the run "
            f"with --pictures {asked}.",
            stacklevel=4,
        )
    return shown


def _strips(run: RunFolder, choice: str) -> dict[str, list[StripRow]]:
    """Return the rows of pictures of training images and of validation images, as far as there are any."""
    groups = {"training": run.samples, "validation": run.validation}
    strips = {
        name: strip_rows(run.points, allowed(samples, choice)) if samples else [] for name, samples in groups.items()
    }
    return {name: rows for name, rows in strips.items() if rows}


def _worst(requests: Sequence[RequestRow]) -> RequestRow | None:
    """Return this run's request whose worst image has the largest f1; None if nothing is known about single images."""
    known = [row for row in requests if not row.since and not math.isnan(row.worst_f1)]
    return max(known, key=lambda row: row.worst_f1, default=None)


def _table(path: Path, content: str) -> Table:
    """Return the rows of a CSV file; no rows if there is no file.

    Args:
        path: path of the file.
        content: what its rows are, for messages.

    Raises:
        UserError: the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of {content}: {error}.") from error


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to table rows named ``outer.inner``."""
    lines: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name}.")
        else:
            lines[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return lines
