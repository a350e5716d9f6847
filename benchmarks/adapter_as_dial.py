"""Compare the front of a sweep with its most forgotten model, moved back towards the unmodified one.

    python benchmarks/adapter_as_dial.py mae --rank 16 --share 0.25 --steps 150

The small model of a family is unlearned whole and with an adapter. For each ε, the script prints f2 of the sweep's
model, and f2 at the scale between 0 and 1 of the most forgotten model's displacement, or adapter, at which f1 = ε.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace

import torch

from unlearn_ext import demo
from unlearn_ext.models.adapters import to_train
from unlearn_ext.unlearning.dial import Anchor, Dial, encoder_state
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.phases import sweep

EPSILONS = ("70%", "50%", "30%", "15%", "7%")


def main(family: str, rank: int, share: float, steps: int) -> None:
    """Print both tables; ``share`` is the fraction of the images that is used."""
    model, images = demo.prepare(family, share=share)
    whole = replace(demo.CHOICES[family].settings, steps=steps)
    print("| trained | ε | f2 of the sweep's model | f2 of the scaled one | scale |\n|---|---|---|---|---|", flush=True)
    for settings in (whole, replace(whole, lora=rank)):
        named = "whole" if settings.lora is None else f"adapter of rank {rank}"
        sets = (images.forget, images.retain)
        front = sweep(model, *sets, task=demo.TASK, epsilons=EPSILONS, settings=settings, pictures="none")
        start = to_train(model, settings.lora, settings.seed)
        objectives = Objectives.freeze(start, *sets, demo.TASK, settings=settings)
        original = objectives.evaluate_f1(objectives.frozen)
        most = front.at(0.0)
        line = Dial(
            start, objectives, original, [Anchor("most-forgotten", encoder_state(most.model), most.f1, most.f2)]
        )
        print(f"| {named} | most forgotten, {most.f1 / original:.1%} | {most.f2:.5f} | – | 1 |", flush=True)
        for point in sorted((p for p in front if p.role == "epsilon"), key=lambda p: -p.epsilon):
            scaled = line.mixture(point.epsilon)
            row = (
                named,
                f"{point.epsilon / original:.0%}",
                f"{point.f2:.5f}",
                f"{scaled.f2:.5f}",
                f"{scaled.share:.2f}",
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=demo.CHOICES)
    for name, kind in (("rank", int), ("share", float), ("steps", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    warnings.simplefilter("ignore")  # an ε that a model cannot reach is seen in the table
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
