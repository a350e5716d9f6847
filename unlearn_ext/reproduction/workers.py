"""Models side by side: several processes of one thread each, where small models leave most of a thread team idle."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from types import TracebackType
from typing import TypeVar

import torch

from ..unlearning.progress import Callback, Progress

__all__ = ["Result", "Unit", "Workers", "cores"]

Unit, Result = TypeVar("Unit"), TypeVar("Result")


class Workers:
    """Applies functions to units of work, here or in processes, and gives the results in the units' order.

    Args:
        jobs: how many processes; 1: none but this one, with as many threads as torch has.
        progress: told when processes begin, and of every result.
    """

    def __init__(self, jobs: int, progress: Callback | None) -> None:
        self._progress = progress
        # Not forked: threads that torch has started by now would be missing in a copy of this process.
        self._pool = get_context("spawn").Pool(jobs, _prepare) if jobs > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.terminate()

    def each(
        self, function: Callable[[Unit], Result], units: Sequence[Unit], name: Callable[[Unit], str]
    ) -> Iterator[Result]:
        """The function's results.

        Args:
            function: at the top level of a module, as processes need it.
            units: what it is given, one by one.
            name: what a unit is called while it is worked on.
        """
        if self._pool is None:
            yield from map(function, units)
            return

        def tell(index: int, step: int) -> None:
            if self._progress is not None:
                self._progress(Progress(name(units[index]), index, len(units), step, 1, math.nan, math.nan, math.nan))

        if units:
            tell(0, 0)
        for index, result in enumerate(self._pool.imap(function, units)):
            tell(index, 1)
            yield result


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def _prepare() -> None:
    """In a new process: Ctrl-C is for the one that waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
