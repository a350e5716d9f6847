"""Errors that a user can act on."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

__all__ = ["UserError", "first_ten", "require"]


class UserError(ValueError):
    """Input that cannot be used. The message is one sentence that says what is wrong and what to do.

    If several items are wrong, they are listed below the sentence, one per line.
    """


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: name of the module, for example ``"diffusers"``.
        extra: the extra of this package that installs it, for example ``"images"``.

    Raises:
        UserError: the module is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the module exists, but one of its own imports failed: not a missing extra
        package = module.partition(".")[0]
        raise UserError(
            f"{package} is not installed; it comes with the extra `{extra}`: pip install 'unlearn-ext[{extra}]'"
        ) from error


def first_ten(lines: Sequence[str]) -> str:
    """Return lines to put below a message: the first ten, and the number of the others."""
    more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "".join(f"\n  {line}" for line in [*lines[:10], *more])
