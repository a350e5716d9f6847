"""Write a small made-up run folder, for tests that need no model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

EPSILONS = (0.3, 0.6, 0.9)
POINTS = (("most-forgotten", "most-forgotten", 0.04), *((f"eps-{e:.4f}", "epsilon", e) for e in EPSILONS),
          ("least-forgotten", "least-forgotten", 1.2))  # fmt: skip


def write_run(folder: Path, **metrics: object) -> Path:
    """Write a run folder as a sweep would; ``metrics`` replaces entries of metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    front, history = [], []
    for name, role, epsilon in POINTS:
        f1 = epsilon + rng.normal(0, 0.004)
        f2 = 0.02 * np.exp(-2.6 * f1)
        front.append([name, role, epsilon, f1, f2, f1 * 1.03, f2 * 1.1, 60, 4.2, False])
        for step in range(60):
            now = f1 + (1.32 - f1) * np.exp(-step / 12) + rng.normal(0, 0.02)
            history.append([name, step, epsilon, now, f2 * (1 - np.exp(-step / 20)) + 1e-5, 100 * (now - f1),
                            abs(rng.normal(0.05, 0.01)), step == 30 and epsilon == 0.3])  # fmt: skip
    _table(folder / "front.csv", "name,role,epsilon,f1,f2,f1_validation,f2_validation,steps,seconds,dominated", front)
    _table(folder / "history.csv", "point,step,epsilon,f1,f2,psi,lam,skipped", history)
    images = rng.integers(0, 256, (8, 1, 32, 32), dtype=np.uint8)
    names = ("original", "corrupted", "unmodified", *(name for name, _, _ in POINTS))
    is_forget = np.arange(8) % 2 == 0
    np.savez(folder / "samples.npz", is_forget=is_forget, **dict.fromkeys(names, images))
    base = {
        "version": "0.1.0", "family": "vqgan", "dataset": "mnist", "task": "center-crop:0.5", "seed": 0,
        "settings": {"lr": 1e-3, "steps": 60, "batch_size": 64}, "f1_original": 1.32, "f2_original": 0.0,
        "f1_star": 0.04, "f2_tolerance": 1e-3,
        "hypervolume": 0.41, "reference_point": [1.32, 0.02], "max_epsilon_miss": 0.0071, "seconds": 63.0,
        "device": "cpu", "peak_memory_mb": 812.0, "samples_from": "validation",
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(base | metrics), encoding="utf-8")
    return folder


def _table(path: Path, header: str, rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
