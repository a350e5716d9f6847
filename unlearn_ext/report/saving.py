"""Saving of figures as image files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .._utils.atomic_io import file_name, write_atomically
from .style import style

__all__ = ["remove_figures", "save_figures"]

_LOOK: dict[str, Any] = {"dpi": 120, "facecolor": "white", "bbox_inches": "tight", "pad_inches": 0.12}
_KINDS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}  # with metadata


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write each figure to ``<name>.png`` and ``<name>.svg``."""
    for name, figure in figures.items():
        for kind, metadata in _KINDS.items():
            content = io.BytesIO()
            with style(), mpl.rc_context({"svg.hashsalt": name}):
                figure.savefig(content, format=kind, metadata=metadata, **_LOOK)
            write_atomically(folder / f"{file_name(name)}.{kind}", content.getvalue())


def remove_figures(folder: Path, names: Iterable[str]) -> None:
    """Remove figures that an earlier report saved."""
    for name in names:
        for kind in _KINDS:
            (folder / f"{file_name(name)}.{kind}").unlink(missing_ok=True)
