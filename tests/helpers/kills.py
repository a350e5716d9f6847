"""Compare work on a tiny model that is killed at random moments and resumed with the same work left undisturbed.

    python tests/helpers/kills.py 50 sweep
    python tests/helpers/kills.py 50 chain
    python tests/helpers/kills.py 50 adapter

The work is a sweep; a chain of two runs, of which the second continues the first; or such a chain with an adapter. It
runs in a forked child, so that Python and its libraries are loaded once. SIGKILL kills it.
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
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tiny
import torch

from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning import journal
from unlearn_ext.unlearning.earlier import read_earlier
from unlearn_ext.unlearning.phases import sweep
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.single import unlearn

CHANGING = ("seconds", "peak_memory_mb", "started", "finished", "after")  # these differ between any two runs


def random_images() -> torch.Tensor:
    """Return four sets of 12 images, and write journals at every step from now on."""
    journal.SECONDS = 0.0
    return torch.rand(4, 12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def chain_to(folder: Path, lora: int | None = None) -> None:
    """Forget two sets of images one after the other, each in a run of its own; resume what is there."""
    images = random_images()
    given = {"task": CenterCrop(0.5), "resume": True, "settings": Settings(steps=6, batch_size=8, lora=lora)}
    model, retain, first = tiny.model("vqgan"), images[1], {"ana": images[0] / 2}
    unlearn(model, first, retain, epsilon={"ana": "60%"}, out=folder / "first", **given)
    unlearn(
        model, {"ben": images[2] / 3 + 0.4, **first}, retain[:10], epsilon={"ben": "70%"}, out=folder / "second",
        after=read_earlier(folder / "first"), **given,
    )  # fmt: skip


def sweep_to(folder: Path) -> None:
    """Sweep a tiny model into a folder; resume what is there."""
    images = random_images()
    sweep(
        tiny.model("vqgan"), images[0] / 2, images[1], task=CenterCrop(0.5), points=2, resume=True, out=folder,
        held_out=(images[2] / 2, images[3]), settings=Settings(steps=6, batch_size=8),
    )  # fmt: skip


WORK = {"sweep": sweep_to, "chain": chain_to, "adapter": partial(chain_to, lora=2)}


def run_and_kill(work: Callable[[Path], None], folder: Path, seconds: float) -> bool:
    """Resume the work in a folder and kill it after ``seconds``; return whether it was killed."""
    child = os.fork()
    if not child:
        work(folder)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"the work failed in {folder}"
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def outcome(folder: Path) -> dict[str, object]:
    """Return the content of every file, by path, without the values in ``CHANGING``."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if path.name == "front.csv":
            rows = csv.DictReader(path.read_text().splitlines())
            found[str(path.relative_to(folder))] = [_stable(row) for row in rows]
        elif path.name == "metrics.json":
            found[str(path.relative_to(folder))] = _stable(json.loads(path.read_text()))
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _stable(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in CHANGING}


def main(kills: int, name: str) -> None:
    work = WORK[name]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # a forked child does not have its parent's threads
    tiny.model("vqgan")  # loads the library once, before the forks
    left = kills
    with tempfile.TemporaryDirectory() as place:
        alone = Path(place) / "alone"
        start = time.monotonic()
        run_and_kill(work, alone, float("inf"))
        usual, times = time.monotonic() - start, 0
        while left > 0:
            folder = Path(place) / str(times)
            while run_and_kill(work, folder, random.uniform(0, usual) if left > 0 else float("inf")):
                left -= 1
            one, other = outcome(folder), outcome(alone)
            unlike = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
            assert not unlike, f"another outcome in {name} {times}: {', '.join(unlike)}"
            times += 1
    print(f"{kills} kills of {times} times the {name} of {usual:.1f} s: all ended with the same bytes")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
