"""Device time, bandwidth and host time of our steps on a GPU, with few cases and rounds: part of ``make gpu-check``.

Each result is appended to the file that the argument names, one JSON object per line, as soon as it is measured. It has
the keys that ``table.py`` reads.
"""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import peers
import torch
from peers import Contestant, Ours
from problems import Problem, Size
from race import CLOCKS, entered, facts, host_seconds, once
from table import cells, rows

import unlearn_ext as ux

LARGE, MANY = Size(100_000_000, 100), Size(19_200, 300)  # for the bandwidth, and for the host's time
ROUNDS = 7


@dataclass(frozen=True)
class Case:
    """A kind of step.

    Attributes:
        name: its name in the table.
        make: makes the contestant from a problem.
        elements: minimum of elements per parameter that a step reads and writes; its bandwidth counts these.
        free: torch's step without a constraint; its host time is measured too.
        constraints: number of constraints.
    """

    name: str
    make: Callable[[Problem], Contestant]
    elements: int
    free: Callable[[Problem], Contestant]
    constraints: int = 1


#: The kinds of step that are timed: add a line here. Each is timed in float32 and bfloat16, at both sizes.
CASES = [
    Case("sgd", partial(Ours, optimizer=ux.EpsilonSGD), 6, peers.TorchSGD),
    Case("adamw", partial(Ours, optimizer=ux.EpsilonAdamW), 13, peers.TorchAdamW),
    Case("adamw averaged", partial(Ours, optimizer=ux.EpsilonAdamW, constraint_grad_ema=0.9), 16, peers.TorchAdamW),
    Case("sgd K = 4", partial(Ours, optimizer=ux.EpsilonSGD), 12, peers.TorchSGD, constraints=4),
]


def measure(case: Case, size: Size, dtype: torch.dtype, device: str = "cuda", rounds: int = ROUNDS) -> dict:
    """Return the times of a step, in seconds, in turn with one large copy."""
    problem = Problem.random(size, dtype, device, constraints=case.constraints)
    copies = problem.copies()
    ours, copy = (entered(make, copies, device) for make in (case.make, peers.Copy))
    info = {**facts(size, dtype), "suite": "step", "device": device, "optimizer": case.name, "steps": 1}
    with torch.no_grad():
        seen = [(once(copy, CLOCKS[device]), once(ours, CLOCKS[device])) for _ in range(rounds + 1)]
        if device == "cuda" and size == MANY:
            info |= {"host": host_seconds(case.make(problem)), "host_free": [host_seconds(case.free(problem))]}
    copied, stepped = (spread(list(times)) for times in zip(*seen[1:], strict=True))  # the first round warms up
    info |= {"bytes": case.elements * dtype.itemsize * size.total, "peers": {"copy": {**copied, "bytes": copy.bytes}}}
    return {"name": f"{case.name}-{size.label}-{info['dtype']}", "stats": stepped, "extra_info": info}


def spread(times: list[float]) -> dict[str, float]:
    """Return median, minimum, maximum and interquartile range."""
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "min": min(times), "max": max(times), "iqr": high - low}


def main() -> None:
    """Measure all cases; the large ones, which matter most, come first."""
    file = Path(sys.argv[1])
    for size in (LARGE, MANY):
        for case in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                result = measure(case, size, dtype)
                with file.open("a") as lines:
                    lines.write(json.dumps(result) + "\n")
                print(*filter(None, cells(*rows({"benchmarks": [result]}))), sep="; ", flush=True)


if __name__ == "__main__":
    main()
