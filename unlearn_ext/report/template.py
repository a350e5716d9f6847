"""Rendering of this folder's HTML templates; all values are escaped."""

from __future__ import annotations

import math
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from .style import data_uri, inline_svg, style

__all__ = ["render", "rounded", "short"]


def render(name: str, plots: dict[str, Figure], **values: Any) -> str:
    """Render a template; only the figures, which are drawn here, are inserted without escaping."""
    environment = Environment(
        loader=PackageLoader("unlearn_ext.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"data_uri": data_uri, "rounded": rounded, "short": short}
    with style():
        drawn = {name: Markup(inline_svg(figure, name)) for name, figure in plots.items()}
    return environment.get_template(name).render(plots=drawn, **values)


def rounded(made_of: str) -> str:
    """Return what a model is made of, with shares of three decimals."""
    return re.sub(r"\d+\.\d+(?=\*)", lambda share: f"{float(share[0]):.3f}", made_of)


def short(cell: str | float | None) -> str:
    """Return the text of a table's cell: numbers with four digits, and a dash for what is missing."""
    try:
        value = math.nan if cell is None or cell == "" else float(cell)
    except ValueError:
        return str(cell)
    return "–" if math.isnan(value) else f"{value:.4g}"
