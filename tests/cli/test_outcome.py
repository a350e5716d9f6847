"""What the commands print of the models of a run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("rich")

from unlearn_ext.cli.outcome import outcome_lines
from unlearn_ext.unlearning.run_folder import read_run


def edit(front: Path, name: str, **values: str) -> None:
    """Change some values of a model in the table."""
    with front.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.setdefault("made_of", "trained")
        if row["name"] == name:
            row.update(values)
    with front.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_more_steps_are_proposed_if_a_trained_model_is_dominated(run_folder: Path) -> None:
    assert list(outcome_lines(read_run(run_folder))) == []
    edit(run_folder / "front.csv", "eps-0.6000", f2="9")
    assert list(outcome_lines(read_run(run_folder))) == [
        "eps-0.6000: trained, but another model is better in both f1 and f2. More steps (--steps) may help."
    ]
    edit(run_folder / "front.csv", "eps-0.6000", made_of="0.5*eps-0.3000 + 0.5*eps-0.9000")
    assert list(outcome_lines(read_run(run_folder))) == []
