"""Sizes of images and patches in configurations: a number, a pair of numbers, or None."""

from __future__ import annotations

from typing import Any

from ..errors import UserError

__all__ = ["read_sides"]


def read_sides(name: str, value: Any) -> tuple[int, int] | None:
    """Return (height, width) in pixels of a configuration entry, or None if the entry is None.

    Args:
        name: name of the entry, for the message.
        value: a whole number for both, or a list or tuple of two.

    Raises:
        UserError: the value is anything else, or a number is less than 1.
    """
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UserError(
            f"{name} in the model's configuration is {value!r}; it must be a whole number of pixels, or a pair of "
            "them, such as 256 or [256, 256]."
        )
    return sides
