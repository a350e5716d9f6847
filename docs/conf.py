"""Sphinx configuration: `make docs` builds the site into build/docs."""

import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))
import unlearn_ext

project = "unlearn_ext"
author = "the unlearn_ext authors"
version = release = unlearn_ext.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_use_param = False
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "unlearn_ext"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False


def _inline(translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator, node: nodes.math_block) -> None:
    translator.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def _bars(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """|f1 − ε| in a docstring is an absolute value, not a substitution."""
    lines[:] = [
        "".join(
            part if part.startswith("`") else part.replace("|", "\\|")
            for part in re.split("(`+[^`]*`+)", line)
        )
        for line in lines
    ]


def setup(app: Sphinx) -> None:
    """Formulas become MathML, drawn by the browser: nothing is loaded from elsewhere."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline, None), block_renderers=(_block, None)
    )
    app.connect("autodoc-process-docstring", _bars)
