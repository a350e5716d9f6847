"""``python -m benchmarks.control``: print one table and write one JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import infeasible, known
from .problem import Problem
from .run import Outcome, run
from .suite import BATCHES, OPTIMIZERS, PROBLEMS


def noise_row(build: Callable[[], Problem], make: Callable[[Problem], Any], seed: int) -> dict[str, Outcome]:
    """Return the outcome of every batch size; one that takes in all examples is run once."""
    outcomes: dict[str, Outcome] = {}
    for batch in reversed(BATCHES):
        problem = build()
        whole = batch >= problem.examples
        outcomes[str(batch or "full")] = outcomes["full"] if whole else run(problem, make, batch, seed)
    return dict(reversed(outcomes.items()))


def noise_line(problem: str, optimizer: str, row: dict[str, Outcome]) -> str:
    """Return one line of the table; ``!`` marks a miss."""
    cells = "".join(f"{outcome.end:10.4f}{' ' if outcome.met else '!'}" for outcome in row.values())
    first = row["full"]
    seconds = sum(outcome.seconds for outcome in row.values())
    return f"{problem:24s}{optimizer:14s}{first.epsilon:8.3f}{first.start:8.3f}{cells}{seconds:8.0f} s"


def main() -> None:
    """Measure whether c settles at ε, what an infeasible ε does, and how soon an optimum is reached, by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description=main.__doc__)
    parser.add_argument("--only", default="", help="run only problems, or 'known optima', whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the minibatches")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/control.json"), help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    noise, harm = {}, {}
    print(
        "c over all examples, mean over the last tenth; ! if it misses ε by more than 5 % of ε and 1 % of |start − ε|"
    )
    batches = "".join(f"{batch or 'full':>10} " for batch in BATCHES)
    print(f"{'problem':24s}{'optimizer':14s}{'ε':>8s}{'start':>8s}{batches}")
    for problem, build in PROBLEMS.items():
        for optimizer, make in OPTIMIZERS.items() if arguments.only in problem else ():
            row = noise_row(build, make, arguments.seed)
            noise[f"{problem}, {optimizer}"] = {batch: asdict(outcome) for batch, outcome in row.items()}
            print(noise_line(problem, optimizer, row), flush=True)
    print("\nε below the infimum; ! if c rises above its start, ends over 5 % above its infimum, or λ is not finite")
    print(
        f"{'problem':24s}{'optimizer':14s}{'start':>11s}{'highest':>11s}{'end':>11s}{'infimum':>11s}{'largest λ':>12s}"
    )
    for problem, build in infeasible.INFEASIBLE.items():
        for optimizer, make in OPTIMIZERS.items() if arguments.only in problem else ():
            found = infeasible.run(build(), make)
            harm[f"{problem}, {optimizer}"] = asdict(found)
            cells = "".join(f"{value:11.4g}" for value in (found.start, found.highest, found.end, found.infimum))
            print(f"{problem:24s}{optimizer:14s}{cells}{found.largest_lam:12.3g}{'' if found.harmless else '!'}")
    print(f"\nknown optima: steps until |x − x*| stays below {known.NEAR:g}; else its end after {known.STEPS} steps, !")
    print(f"{'problem':22s}" + "".join(f"{name:>15s} " for name in (*known.OURS, *known.COOPER)))
    optima = {}
    for problem, build in known.KNOWN.items() if arguments.only in "known optima" else ():
        arrivals = known.rows(build())
        optima[problem] = {name: asdict(found) for name, found in arrivals.items()}
        cells = "".join(f"{found.steps:15d} " if found.steps else f"{found.end:15.2g}!" for found in arrivals.values())
        print(f"{problem:22s}{cells}", flush=True)
    results = {"noise": noise, "infeasible": harm, "known": optima}
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
