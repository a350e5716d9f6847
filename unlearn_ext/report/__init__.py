"""What a run looks like to the people who have to decide on it."""

from __future__ import annotations

from pathlib import Path

from ..errors import require


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html`, one file that needs no other, and `figures/*.png` into the run's folder."""
    require_drawing()
    from .page import write_page

    return write_page(run_folder)


def write_reproduction(folder: str | Path) -> Path:
    """Write `reproduction.html`, one file that needs no other, beside the tables of an experiment."""
    require_drawing()
    from .reproduction import write_page

    return write_page(Path(folder))


def require_drawing() -> None:
    """Raises ``UserError`` where a library that draws is not installed."""
    for module in ("matplotlib", "jinja2", "scipy", "sklearn"):
        require(module, extra="report")
