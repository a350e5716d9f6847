"""Measure how soon the forgotten comes back with and without sharpness, and what it costs in f2.

    python benchmarks/relearning.py --family vqgan --seeds 0,1,2 --rho 0,0.05,0.1 --out relearning.csv

Trains models at one ε after the other on the built-in digits, as a sweep trains its anchors. Then trains the encoder of
each but the first further with the family's pretraining loss, as in the study "resurfacing" of `reproduce`. ε and f1
are shares of the unmodified model's f1.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from unlearn_ext import Settings, demo
from unlearn_ext.audit.relearning import FEW, relearn
from unlearn_ext.models import I2IModel
from unlearn_ext.unlearning.encoder import Encoder
from unlearn_ext.unlearning.history import History
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.schedule import SCHEDULE
from unlearn_ext.unlearning.trainer import Trainer

RELEARNING = {"few forget": (5, 20, 100), "retain": (50,)}  # numbers of steps after which f1 is measured
RELEARNING_LR = 1e-4
COLUMNS = [
    "family", "seed", "rho", "epsilon", "f1", "f2", "f1_validation", "f2_validation",
    *(f"{data} {count}" for data, counts in RELEARNING.items() for count in counts), "seconds_per_step",
]  # fmt: skip


def rows(family: str, seed: int, rho: float, epsilons: list[float], steps: int | None) -> Iterator[list[float | str]]:
    """Train with one ρ and yield a row of ``COLUMNS`` for each ε but the first."""
    choice = demo.CHOICES[family]
    settings: Settings = replace(choice.settings, seed=seed, sharpness=rho, steps=steps or choice.settings.steps)
    model, images = demo.prepare(family, seed=seed)
    training = Objectives.freeze(model, images.forget, images.retain, demo.TASK, settings=settings)
    validation = training.held_out(images.forget_validation, images.retain_validation)
    original, reference = (sides.evaluate_f1(sides.frozen) for sides in (training, validation))
    unlearned = copy.deepcopy(model)
    trainer = Trainer(unlearned, training, History())
    for share in epsilons:
        before, begun = time.process_time(), trainer.steps_taken
        f1, f2 = trainer.approach(share * original)
        seconds = (time.process_time() - before) / (trainer.steps_taken - begun)
        if share != epsilons[0]:
            f1_validation, f2_validation = validation.evaluate(trainer.encode)
            sets = {"few forget": images.forget[:FEW], "retain": images.retain}
            back = [
                f1_back / reference
                for data, counts in RELEARNING.items()
                for f1_back in f1_after(counts, unlearned, sets[data], validation, seed)
            ]
            reached = [f1 / original, f2, f1_validation / reference, f2_validation]
            yield [family, seed, rho, share, *reached, *back, seconds]


def f1_after(
    counts: tuple[int, ...], model: I2IModel, images: torch.Tensor, validation: Objectives, seed: int
) -> Iterator[float]:
    """Train a copy of the model on the images; yield f1 over validation images after each number of steps."""
    attacked = copy.deepcopy(model)
    losses = relearn(attacked, images, demo.TASK, RELEARNING_LR, seed)
    for step in range(1, counts[-1] + 1):
        next(losses)
        if step in counts:
            yield validation.evaluate_f1(Encoder(attacked, validation.settings))


def main() -> None:
    """Append the rows of every seed and ρ to a CSV file."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", default="vqgan", choices=demo.CHOICES)
    options.add_argument("--seeds", default="0,1,2")
    options.add_argument("--rho", default="0,0.1")
    options.add_argument("--epsilons", default=",".join(map(str, SCHEDULE.anchors)))
    options.add_argument("--steps", type=int, help="steps per ε; by default those of the demo")
    options.add_argument("--out", type=Path, default=Path("relearning.csv"))
    asked = options.parse_args()
    with asked.out.open("a", newline="") as file:
        table = csv.writer(file)
        if not file.tell():
            table.writerow(COLUMNS)
        epsilons = [float(share) for share in asked.epsilons.split(",")]
        for seed in map(int, asked.seeds.split(",")):
            for rho in map(float, asked.rho.split(",")):
                for row in rows(asked.family, seed, rho, epsilons, asked.steps):
                    table.writerow([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row])
                    file.flush()


if __name__ == "__main__":
    main()
