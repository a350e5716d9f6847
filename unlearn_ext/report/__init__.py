"""What a run looks like to the people who have to decide on it."""

from __future__ import annotations

from pathlib import Path

from ..errors import require


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html`, one file that needs no other, and `figures/*.png` into the run's folder."""
    for module in ("matplotlib", "jinja2"):
        require(module, extra="report")
    from .page import write_page

    return write_page(run_folder)
