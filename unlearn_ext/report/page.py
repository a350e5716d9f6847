"""Put figures, pictures and words on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from .figures import convergence, front, steering
from .run_folder import read_run
from .strip import strip_figure, strip_rows
from .style import data_uri, inline_svg, style


def write_page(run_folder: str | Path) -> Path:
    """Write the page and its figures; returns the page's path."""
    run = read_run(run_folder)
    rows = strip_rows(run)
    plots = {"front": front(run), "steering": steering(run), "convergence": convergence(run)}
    _save_pngs(run.path / "figures", plots | {"strip": strip_figure(rows)})
    environment = Environment(
        loader=PackageLoader("unlearn_ext.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = run.path / "report.html"
    html = environment.get_template("page.html").render(
        run=run,
        metrics=run.metrics,
        points=run.points,
        settings=_flat(run.metrics.get("settings", {})),
        rows=[(row, data_uri(row.forget), data_uri(row.retain)) for row in rows],
        plots={name: Markup(_svg(figure, name)) for name, figure in plots.items()},  # drawn here: no text of the user's
    )
    page.write_text(html, encoding="utf-8")
    return page


def _svg(figure: Figure, name: str) -> str:
    with style():
        return inline_svg(figure, name)


def _save_pngs(folder: Path, figures: dict[str, Figure]) -> None:
    folder.mkdir(exist_ok=True)
    with style():
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=120, facecolor="white", bbox_inches="tight", pad_inches=0.12)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner` lines of a table."""
    lines: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name}.")
        else:
            lines[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return lines
