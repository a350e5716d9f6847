"""Compare sweeps of a tiny model that are killed at random moments and resumed with an undisturbed sweep.

    python tests/helpers/kills.py 50

Every sweep runs in a forked child, so that Python and its libraries are loaded once. SIGKILL kills it.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import tiny
import torch

from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning import journal
from unlearn_ext.unlearning.phases import sweep
from unlearn_ext.unlearning.settings import Settings

CHANGING = ("seconds", "peak_memory_mb")  # these differ between any two runs


def sweep_to(folder: Path) -> None:
    """Sweep a tiny model into a folder, with a journal entry after every step; resume what is there."""
    journal.SECONDS = 0.0
    images = torch.rand(4, 12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sweep(
        tiny.model("vqgan"), images[0] / 2, images[1], task=CenterCrop(0.5), points=2, resume=True, out=folder,
        held_out=(images[2] / 2, images[3]), settings=Settings(steps=6, batch_size=8),
    )  # fmt: skip


def run_and_kill(folder: Path, seconds: float) -> bool:
    """Resume the sweep in a folder and kill it after ``seconds``; return whether it was killed."""
    child = os.fork()
    if not child:
        sweep_to(folder)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"a sweep failed in {folder}"
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> dict[str, object]:
    """Return the content of every file of a run, by path, without the values in ``CHANGING``."""
    found: dict[str, object] = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found["front.csv"] = [_stable(row) for row in csv.DictReader(found["front.csv"].decode().splitlines())]
    found["metrics.json"] = _stable(json.loads(found["metrics.json"]))
    return found


def _stable(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in CHANGING}


def main(kills: int) -> None:
    torch.set_num_threads(1)  # a forked child does not have its parent's threads
    tiny.model("vqgan")  # loads the library once, before the forks
    left = kills
    with tempfile.TemporaryDirectory() as place:
        alone = Path(place) / "alone"
        start = time.monotonic()
        run_and_kill(alone, float("inf"))
        usual, sweeps = time.monotonic() - start, 0
        while left > 0:
            folder = Path(place) / str(sweeps)
            while run_and_kill(folder, random.uniform(0, usual) if left > 0 else float("inf")):
                left -= 1
            one, other = outcome(folder), outcome(alone)
            unlike = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
            assert not unlike, f"another outcome in sweep {sweeps}: {', '.join(unlike)}"
            sweeps += 1
    print(f"{kills} kills of {sweeps} sweeps of {usual:.1f} s: all ended with the same bytes")


if __name__ == "__main__":
    main(int(sys.argv[1]))
