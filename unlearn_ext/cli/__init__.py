"""The command line. Only this part of the package needs the extra `cli`."""

from __future__ import annotations

import sys

from ..errors import UserError, require
from .streams import make_safe

__all__ = ["main"]


def main() -> None:
    """Run `unlearn-ext`; if a library is missing, exit with a message that names the extra to install."""
    make_safe()
    try:
        for module in ("typer", "rich"):
            require(module, extra="cli")
    except UserError as error:
        sys.exit(f"Error: {error}")
    from .app import app

    app(prog_name="unlearn-ext")
