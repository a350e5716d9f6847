"""Errors that a user can act on."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

__all__ = ["UserError", "first_ten", "require"]


class UserError(ValueError):
    """Input that cannot be worked with. The message is one sentence that says what is wrong and what to do.

    Where it is about several things, they are listed below it, a line each.
    """


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: name to import, for example ``"diffusers"``.
        extra: the extra of this package that brings it, for example ``"images"``.

    Raises:
        UserError: the module is not installed; the sentence names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the module is there, but something under it is broken: that is not a missing extra
        package = module.partition(".")[0]
        raise UserError(
            f"{package} is not installed; it comes with the extra `{extra}`: pip install 'unlearn-ext[{extra}]'"
        ) from error


def first_ten(lines: Sequence[str]) -> str:
    """Lines to put below a sentence: the first ten, and how many more there are."""
    more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "".join(f"\n  {line}" for line in [*lines[:10], *more])
