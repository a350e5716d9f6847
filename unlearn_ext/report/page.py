"""The report page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._utils.atomic_io import write_text
from ..unlearning.run_folder import read_run
from .figures import convergence, front, steering
from .saving import save_figures
from .strip import strip_figure, strip_rows
from .template import render

__all__ = ["write_page"]


def write_page(run_folder: str | Path) -> Path:
    """Write ``report.html`` and its figures; return the path of the page."""
    run = read_run(run_folder)
    rows = strip_rows(run)
    plots = {"front": front(run), "steering": steering(run), "convergence": convergence(run)}
    save_figures(run.path / "figures", plots | {"strip": strip_figure(rows)})
    page = run.path / "report.html"
    html = render(
        "page.html",
        plots,
        run=run,
        metrics=run.metrics,
        points=run.points,
        settings=_flat(run.metrics.get("settings", {})),
        rows=rows,
    )
    write_text(page, html)
    return page


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to table rows named ``outer.inner``."""
    lines: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name}.")
        else:
            lines[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return lines
