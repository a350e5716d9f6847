"""Style of the figures: Okabe–Ito and viridis colours, plain axes, and lines in the page's text colour."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["BLUE", "GREEN", "INK", "ORANGE", "VERMILION", "data_uri", "inline_svg", "shades", "style"]

INK = "#14202e"  # replaced by currentColor in pages, so that a figure works in light and dark mode
ORANGE, BLUE, GREEN, VERMILION = "#e69f00", "#0072b2", "#009e73", "#d55e00"  # Okabe–Ito

_RC: dict[Any, Any] = {
    "font.size": 11,
    "font.family": "sans-serif",
    "svg.fonttype": "path",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.10,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Set the style of all figures drawn in this context."""
    with mpl.rc_context(_RC):
        yield


def shades(count: int) -> list[tuple[float, float, float]]:
    """Return one colour per model, dark for the most forgotten.

    The colours are viridis without its ends, which are hard to see on white or black.
    """
    return [mpl.colormaps["viridis"](position)[:3] for position in np.linspace(0.22, 0.9, count)]


def inline_svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element; ``name`` makes its ids differ from those of the page's other figures."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)


def data_uri(pixels: np.ndarray) -> str:
    """Encode pixels, uint8 [H, W, RGBA], as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
