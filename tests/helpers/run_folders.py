"""Write a small made-up run folder, for tests that need no model."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

EPSILONS = (0.3, 0.6, 0.9)
POINTS = (("most-forgotten", "most-forgotten", 0.04), *((f"eps-{e:.4f}", "epsilon", e) for e in EPSILONS),
          ("least-forgotten", "least-forgotten", 1.2))  # fmt: skip


def write_run(folder: Path, points: Sequence[tuple[str, str, float]] = POINTS, **metrics: object) -> Path:
    """Write a run folder as a sweep would; ``metrics`` replaces entries of metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    front, history = [], []
    for name, role, epsilon in points:
        f1 = epsilon + rng.normal(0, 0.004)
        f2 = 0.02 * np.exp(-2.6 * f1)
        front.append([name, role, epsilon, f1, f2, f1 * 1.03, f2 * 1.1, 60, 4.2, False])
        for step in range(60):
            now = f1 + (1.32 - f1) * np.exp(-step / 12) + rng.normal(0, 0.02)
            history.append([name, step, epsilon, now, f2 * (1 - np.exp(-step / 20)) + 1e-5, 100 * (now - f1),
                            abs(rng.normal(0.05, 0.01)), step == 30 and epsilon == 0.3])  # fmt: skip
    _table(folder / "front.csv", "name,role,epsilon,f1,f2,f1_validation,f2_validation,steps,seconds,dominated", front)
    _table(folder / "history.csv", "point,step,epsilon,f1,f2,psi,lam,skipped", history)
    names = ("original", "corrupted", "unmodified", *(name for name, _, _ in points))
    for file, count in (("samples.npz", 8), ("validation.npz", 6)):
        pictures = {name: rng.integers(0, 256, (count, 1, 32, 32), dtype=np.uint8) for name in names}
        np.savez(folder / file, is_forget=np.arange(count) % 2 == 0, **pictures)
    base = {
        "version": "0.1.0", "family": "vqgan", "dataset": "mnist", "task": "center-crop:0.5", "seed": 0,
        "settings": {"lr": 1e-3, "steps": 60, "batch_size": 64}, "f1_original": 1.32, "f2_original": 0.0,
        "f1_star": 0.04, "f2_tolerance": 1e-3,
        "hypervolume": 0.41, "reference_point": [1.32, 0.02], "max_epsilon_miss": 0.0071, "seconds": 63.0,
        "device": "cpu", "peak_memory_mb": 812.0, "samples_from": "validation",
        "pictures": "all",
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(base | metrics), encoding="utf-8")
    return folder


def write_single(folder: Path, **metrics: object) -> Path:
    """Write a run folder as ``run`` would: one model, and the tables of its requests."""
    missing = dict.fromkeys(("f1_star", "f2_tolerance", "hypervolume", "reference_point", "max_epsilon_miss"))
    write_run(folder, [("eps-0.3000", "epsilon", 0.3)], command="run", **missing, **metrics)
    write_requests(
        folder,
        [
            ["eps-0.3000", "s7", 0.3, 1.32, 0.298, 0.31, 24, 0.412, "photos/s7/3.png", 5, "trained", "", 6, 0],
            ["eps-0.3000", "s1", 0.2, 1.29, 0.199, "nan", 30, 0.25, "photos/s1/9.png", 2, "trained", "runs-s1", 0, 0],
            ["eps-0.3000", "s0", 0.2, 1.25, "nan", "nan", 12, "nan", "", -1, "not at hand", "runs-s0", 0, 0],
        ],
    )
    return folder


def write_requests(folder: Path, rows: list[list[object]]) -> None:
    """Write the table of the requests."""
    header = "point,request,epsilon,f1_unmodified,f1,f1_validation,images,worst_f1,worst_file,above,held,since,"
    header += "held_out,left_out"
    _table(folder / "requests.csv", header, rows)


def write_audit(folder: Path) -> None:
    """Write the table of an audit."""
    _table(
        folder / "audit.csv",
        "point,audit,measure,forget,retain,chance,note",
        [
            ["unmodified", "linear reader", "mse of the hole", 0.232, 0.24, 0.629, ""],
            ["eps-0.3000", "linear reader", "mse of the hole", 0.272, 0.241, 0.629, "ridge, <b>α</b> = 1"],
        ],
    )


def _table(path: Path, header: str, rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
