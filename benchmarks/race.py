"""Timing of contestants in turn, round by round, in one process, so that disturbances affect all of them."""

import statistics
import time
from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from peers import Contestant
from problems import Problem, Size

HAS_CUDA = torch.cuda.is_available()
_start: list[torch.cuda.Event] = []


def device_clock() -> float:
    """Return the seconds on the GPU since the first call; waits for all earlier work."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    event.synchronize()
    if not _start:
        _start.append(event)
    return _start[0].elapsed_time(event) / 1e3


CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.perf_counter, "cuda": device_clock}


def on(device: str, *values: object, name: str) -> object:
    """Return a benchmark case that is timed by its device's clock, and skipped if there is no such device."""
    marks = [pytest.mark.benchmark(timer=CLOCKS[device])]
    if device == "cuda":
        marks.append(pytest.mark.skipif(not HAS_CUDA, reason="torch sees no CUDA device here"))
    return pytest.param(device, *values, id=name if name == device else f"{device}-{name}", marks=marks)


def cases(sizes: dict[str, list[Size]], dtypes: list[torch.dtype]) -> list[object]:
    """Return a case for each device, size and dtype."""
    return [
        on(device, size, dtype, name=f"{size.label}-{str(dtype).removeprefix('torch.')}")
        for device, mine in sizes.items()
        for size in mine
        for dtype in dtypes
    ]


def facts(size: Size, dtype: torch.dtype) -> dict[str, object]:
    """Return the table's entries about a problem."""
    return {"size": size.label, "total": size.total, "count": size.count, "dtype": str(dtype).removeprefix("torch.")}


def rounds_of(size: Size, device: str) -> int:
    """Return the number of rounds: fewer for larger problems, and on a GPU, where a round has several steps."""
    most = 200 if device == "cpu" else 15
    return max(7, min(most, int(300_000_000 / size.total)))


class Burst(Contestant):
    """Several steps over copies of a problem in one CUDA graph, so that only the device's work is timed."""

    steps = 12

    def __init__(self, contestants: list[Contestant]) -> None:
        super().__init__(contestants[0].problem)
        self.contestants = contestants  # the graph uses their memory
        self.bytes = contestants[0].bytes
        for contestant in contestants:
            for _ in range(2):
                contestant.prepare()
                contestant.step()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        turns = cycle(contestants)
        with torch.cuda.graph(self.graph):
            for _ in range(self.steps):
                contestant = next(turns)
                contestant.prepare()
                contestant.step()

    def step(self) -> None:
        """Replay the graph."""
        self.graph.replay()


def entered(make: Callable[[Problem], Contestant], copies: list[Problem], device: str) -> Contestant:
    """Make a contestant; on a GPU, it takes the copies of the problem in turn, so that none is in the L2 cache."""
    made = [make(copy) for copy in copies]
    return Burst(made) if device == "cuda" else made[0]


def once(contestant: Contestant, clock: Callable[[], float]) -> float:
    """Take two steps; return the time of the second, in seconds."""
    contestant.prepare()
    contestant.step()
    contestant.prepare()
    begin = clock()
    contestant.step()
    return (clock() - begin) / contestant.steps


def race(benchmark, device: str, ours: Contestant, peers: dict[str, Contestant], rounds: int) -> None:
    """Time our step with pytest-benchmark, and in each round all peers before it with the same clock.

    Each contestant takes two steps, and the second is timed: its code and tables are then in the processor's cache, as
    in a training loop. The peers' median, minimum and maximum go to ``benchmark.extra_info["peers"]``.
    """
    times: dict[str, list[float]] = {name: [] for name in peers}

    def everybody_else() -> None:
        for name, peer in peers.items():
            times[name].append(once(peer, CLOCKS[device]))
        ours.prepare()
        ours.step()
        ours.prepare()

    with torch.no_grad():
        benchmark.pedantic(ours.step, setup=everybody_else, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["steps"] = ours.steps
    benchmark.extra_info["peers"] = {
        name: {**_summary(seen), "bytes": peers[name].bytes} for name, seen in times.items()
    }


def _summary(seconds: list[float]) -> dict[str, float]:
    counted = seconds[1:] or seconds  # the first round warms up
    return {"median": statistics.median(counted), "min": min(counted), "max": max(counted)}


def host_seconds(contestant: Contestant, rounds: int = 50) -> float:
    """Return the host's median time for a step, without waiting for the GPU."""
    seen = []
    for _ in range(rounds):
        contestant.prepare()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        contestant.step()
        seen.append(time.perf_counter() - begin)
    return statistics.median(seen[1:])
