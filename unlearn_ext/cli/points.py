"""Which points of a front are wanted, as it is typed: `9`, or some of them by their numbers, `3,4` or `3,4/12`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import typer

DEFAULT = 9


@dataclass(frozen=True)
class Points:
    """What :func:`parse` understood.

    Attributes:
        count: ε between the boundaries.
        only: numbers of those to compute, from 1, with the least ε, on; None for all.
    """

    count: int = DEFAULT
    only: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return str(self.count) if self.only is None else f"{','.join(map(str, self.only))}/{self.count}"


def parse(text: str) -> Points:
    """Of a count, or of numbers with commas between them and the count after a slash, if it is another than 9.

    Raises:
        typer.BadParameter: it is neither, or there is no such number.
    """
    found = re.fullmatch(r"(?P<numbers>\d+(,\d+)*)(/(?P<count>\d+))?", text.strip())
    if found is None:
        raise typer.BadParameter(f"`{text}` is no count such as 9, and no numbers of points such as 3,4 or 3,4/12.")
    numbers = tuple(map(int, found["numbers"].split(",")))
    if len(numbers) == 1 and found["count"] is None:
        points = Points(numbers[0])
    else:
        points = Points(int(found["count"] or DEFAULT), numbers)
    if points.count < 1:
        raise typer.BadParameter("0 is not in the range x>=1.")
    if wrong := [number for number in points.only or () if not 1 <= number <= points.count]:
        raise typer.BadParameter(f"there is no point number {wrong[0]}; the numbers are 1 to {points.count}.")
    return points
