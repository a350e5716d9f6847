"""The command line. It needs the extra `cli`; the rest of the package does not."""

from __future__ import annotations

import sys

from ..errors import UserError, require
from .streams import make_safe

__all__ = ["main"]


def main() -> None:
    """Run `unlearn-ext`; where its libraries are missing, say which extra brings them."""
    make_safe()
    try:
        for module in ("typer", "rich"):
            require(module, extra="cli")
    except UserError as error:
        sys.exit(f"Error: {error}")
    from .app import app

    app(prog_name="unlearn-ext")
