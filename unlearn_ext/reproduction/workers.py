"""Parallel processes with one thread each: faster for small models, which do not keep several threads busy."""

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

Unit = TypeVar("Unit")
Result = TypeVar("Result")


class Workers:
    """A context manager that applies functions to units of work, in order, in this process or in parallel ones.

    Args:
        jobs: number of processes; 1 uses only this process, with all of torch's threads.
        progress: callback at the start of the processes and after every result.
    """

    def __init__(self, jobs: int, progress: Callback | None) -> None:
        self._progress = progress
        # "spawn": a forked process would lack the threads that torch has already started.
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
        """Yield the function's result for each unit, in order.

        Args:
            function: function at the top level of a module, so that it can be pickled.
            units: arguments of the calls.
            name: function that names a unit in progress reports.
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
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _prepare() -> None:
    """Set up a new process: one thread; only the parent process handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
