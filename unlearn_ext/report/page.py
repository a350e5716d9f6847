"""Put figures, pictures and words on one page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..writing import write_atomically
from .figures import convergence, front, steering
from .run_folder import read_run
from .strip import strip_figure, strip_rows
from .style import data_uri, style
from .template import render


def write_page(run_folder: str | Path) -> Path:
    """Write the page and its figures; returns the page's path."""
    run = read_run(run_folder)
    rows = strip_rows(run)
    plots = {"front": front(run), "steering": steering(run), "convergence": convergence(run)}
    _save_pngs(run.path / "figures", plots | {"strip": strip_figure(rows)})
    page = run.path / "report.html"
    html = render(
        "page.html",
        plots,
        run=run,
        metrics=run.metrics,
        points=run.points,
        settings=_flat(run.metrics.get("settings", {})),
        rows=[(row, data_uri(row.forget), data_uri(row.retain)) for row in rows],
    )
    write_atomically(page, html.encode())
    return page


def _save_pngs(folder: Path, figures: dict[str, Figure]) -> None:
    with style():
        for name, figure in figures.items():
            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=120, facecolor="white", bbox_inches="tight", pad_inches=0.12)
            write_atomically(folder / f"{name}.png", png.getvalue())


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner` lines of a table."""
    lines: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name}.")
        else:
            lines[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return lines
