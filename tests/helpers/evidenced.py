"""Write the folder of a finished `run` for two requests, with real models and images, as quickly as possible."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from unlearn_ext import models, tasks
from unlearn_ext._utils.atomic_io import write_table
from unlearn_ext._utils.file_hash import file_sha256
from unlearn_ext.audit import table as audit_table
from unlearn_ext.data.decode import decode
from unlearn_ext.evidence.record import Before
from unlearn_ext.unlearning.encoder import Encoder
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings

NAMES = {"alice": "photos/alice", "bob": "photos/bob"}
RETAIN, MODEL, POINT, TASK = "theirs", "checkpoint", "eps-0.5000", "center-crop:0.5"
IMAGES = 6  # of each request; one more is held out


def write_run(place: Path, **metrics: Any) -> tuple[Path, Before]:
    """Write images, the model before and the run's folder; return that folder, and the model before.

    Args:
        place: empty folder; paths in the tables are relative to it.
        metrics: replaces entries of metrics.json.
    """
    tiny.model("vqgan").save_pretrained(place / MODEL)
    rng = np.random.default_rng(0)
    for folder in (*NAMES.values(), RETAIN):
        (place / folder).mkdir(parents=True)
        for index in range(IMAGES + 1):
            pixels = rng.integers(0, 256, (tiny.SIDE, tiny.SIDE), dtype=np.uint8)
            pytest.importorskip("PIL.Image").fromarray(pixels).save(place / folder / f"{index}.png")
    run = place / "run"
    run.mkdir()
    rows = [*(row for name, folder in NAMES.items() for row in _rows(place, "forget", name, folder)),
            *_rows(place, "retain", "", RETAIN)]  # fmt: skip
    rows.append(("forget", "bob", f"{NAMES['bob']}/broken.png", "", "left out", "cannot identify image file"))
    write_table(run / "images.csv", ("set", "request", "file", "sha256", "used_as", "reason"), rows)
    before, settings = models.load("vqgan", place / MODEL), Settings(steps=1, batch_size=4)
    after = models.load("vqgan", place / MODEL)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in after.encoder_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    after.save_pretrained(run / POINT)
    table, f2 = [], 0.0
    for number, name in enumerate(NAMES):
        objectives = Objectives.freeze(
            before, _stack(place, rows, name), _stack(place, rows, ""), tasks.parse(TASK), settings=settings
        )
        encode = Encoder(after, settings)
        f1, f2 = objectives.evaluate(encode)
        files = [row[2] for row in rows if row[1] == name and row[4] == "training"]
        each = objectives.per_image(encode).tolist()
        epsilon = f1 * (1.01 if number == 0 else 0.99)  # the first request's limit is kept, the second's is missed
        worst = max(each)
        table.append(
            (POINT, name, epsilon, objectives.evaluate_f1(objectives.frozen), f1, f1 * 1.1, IMAGES, worst,
             files[each.index(worst)], sum(one > epsilon for one in each), "trained", "", 0, 0)
        )  # fmt: skip
    columns = ("point", "request", "epsilon", "f1_unmodified", "f1", "f1_validation", "images", "worst_f1",
               "worst_file", "above", "held", "since", "held_out", "left_out")  # fmt: skip
    write_table(run / "requests.csv", columns, table)
    first = dict(zip(columns, table[0], strict=True))
    write_table(
        run / "front.csv",
        (
            "name",
            "role",
            "epsilon",
            "f1",
            "f2",
            "f1_validation",
            "f2_validation",
            "steps",
            "seconds",
            "made_of",
            "dominated",
        ),
        [(POINT, "epsilon", first["epsilon"], first["f1"], f2, first["f1_validation"], f2, 1, 0.1, "trained", 0)],
    )
    written = {
        "command": "run", "argv": ["unlearn-ext", "run", "--out", "run"], "started": "2026-01-01T10:00:00Z",
        "finished": "2026-01-01T10:05:00Z", "after": None, "family": "vqgan", "dataset": "photos", "task": TASK,
        "device": "cpu", "seed": 0, "settings": asdict(settings), "f1_original": first["f1_unmodified"],
        "f1_star": None, "version": "0.1.0",
        "requests": {name: {"epsilon": row[2], "epsilon_given": "50%"} for name, row in zip(NAMES, table, strict=True)},
    }  # fmt: skip
    (run / "metrics.json").write_text(json.dumps(written | metrics))
    sources = {
        "forget": [f"{name}={place / folder}" for name, folder in NAMES.items()], "retain": str(place / RETAIN),
        "model": str(place / MODEL), "augment": [], "data_dir": None,
    }  # fmt: skip
    (run / "sources.json").write_text(json.dumps(sources))
    return run, Before(MODEL, place / MODEL)


def write_audit(run: Path, note: str = "") -> None:
    """Write an `audit.csv` of one row."""
    audit_table.write_audit(run, [audit_table.AuditRow(POINT, "linear reader", "error", 0.27, 0.03, math.nan, note)])


def edit(table: Path, column: str, value: str) -> None:
    """Replace a value in the first row of a table."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[0][column] = value
    write_table(table, list(rows[0]), [list(row.values()) for row in rows])


def _rows(place: Path, side: str, request: str, folder: str) -> list[tuple[str, ...]]:
    uses = ["training"] * IMAGES + ["validation"]
    names = [f"{folder}/{index}.png" for index in (3, *(i for i in range(IMAGES + 1) if i != 3))]
    return [(side, request, name, file_sha256(place / name), use, "") for name, use in zip(names, uses, strict=True)]


def _stack(place: Path, rows: Sequence[tuple[str, ...]], request: str) -> torch.Tensor:
    files = [place / row[2] for row in rows if row[1] == request and row[4] == "training"]
    return torch.stack([torch.from_numpy(decode(file, tiny.SIDE, 1).pixels) for file in files])
