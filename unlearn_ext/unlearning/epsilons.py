"""ε as a number or as a share of the unmodified model's f1, such as ``"12%"``."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from ..errors import UserError

__all__ = ["Epsilon", "check_epsilon", "in_f1", "parse_epsilon"]

Epsilon = float | str
_SHARE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*")


def check_epsilon(epsilon: Any) -> None:
    """Raise ``UserError`` if ε is neither a finite number nor a share such as ``"12%"``."""
    if isinstance(epsilon, str) and _SHARE.fullmatch(epsilon):
        return
    if not isinstance(epsilon, Real) or not math.isfinite(epsilon):
        raise UserError(
            f"ε is {epsilon!r}; it must be a finite number, the f1 to reach, or a share of the unmodified model's f1, "
            'such as "12%".'
        )


def parse_epsilon(text: str) -> Epsilon:
    """Return an ε from the command line: a number of at least 0, or a share such as ``"12%"``.

    Raises:
        UserError: it is neither.
    """
    if share := _SHARE.fullmatch(text):
        return f"{share[1]}%"
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(
            f"{text!r} is no ε: give a number of 0 or more, the f1 to reach, or a share of the unmodified model's f1 "
            "with a percent sign, such as 12%."
        )
    return number


def in_f1(epsilon: Epsilon, unmodified: float) -> float:
    """Return ε in units of f1.

    Args:
        epsilon: a number, which is returned, or a share.
        unmodified: f1 of the unmodified model over the same images.
    """
    if not isinstance(epsilon, str):
        return float(epsilon)
    share = _SHARE.fullmatch(epsilon)
    assert share is not None  # the callers check it
    return float(share[1]) / 100 * unmodified
