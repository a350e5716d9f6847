"""Few cases of a large grid: every two values of two parameters meet."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return cases in which each value of a parameter meets each value of every other one; the same in every process.

    Each case is the one of the whole grid that has the most pairs which no earlier case has.
    """
    grid = {
        case: set(combinations(enumerate(case), 2)) for case in product(*(range(len(values)) for values in parameters))
    }
    missing, cases = set().union(*grid.values()), []
    while missing:
        case = max(grid, key=lambda case: len(grid[case] & missing))
        missing -= grid.pop(case)
        cases.append(tuple(values[i] for values, i in zip(parameters, case, strict=True)))
    return cases
