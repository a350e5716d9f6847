"""What the experiment is made of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..demo import CHOICES, DATASET, FORGET_CLASSES, TASK
from ..errors import UserError
from ..writing import write_atomically
from .studies import Convergence, Crops, Infill, Probe, Resurfacing, Study

FILE = "reproduction.json"
# Of the baselines in every family: with twice as much the weighted sum's f2 at the same f1, for three weights, is
# 0.010/0.017/0.043 in place of 0.003/0.009/0.034 (small VQ-GAN).
BASELINE_LR = 1e-3


@dataclass(frozen=True)
class Plan:
    """How thorough it is.

    Attributes:
        seeds: how many, from 0; more may be asked for later.
        points: ε between the boundaries.
        studies: questions beside it, of the first seed of each family.
    """

    seeds: int
    points: int
    studies: tuple[Study, ...] = ()

    def keep(self, out: Path, device: torch.device) -> None:
        """Write it beside the tables, and on what kind of device they are made, which decides their last digits.

        Raises:
            UserError: the tables there are of another plan.
        """
        mine = {"dataset": DATASET, "forget_classes": list(FORGET_CLASSES), "task": str(TASK)}
        mine |= {"points": self.points, "baseline_lr": BASELINE_LR, "device": device.type}
        mine |= {"settings": {family: asdict(choice.settings) for family, choice in CHOICES.items()}}
        mine |= {"studies": {study.name: asdict(study) for study in self.studies}}
        text = json.dumps(mine, indent=2)
        if not (out / FILE).exists():
            write_atomically(out / FILE, f"{text}\n".encode())
        elif kept(out) != json.loads(text):
            raise UserError(f"{out} holds an experiment with other settings, see {FILE} there; choose another folder.")


def kept(out: Path) -> dict[str, Any]:
    """What :meth:`Plan.keep` wrote.

    Raises:
        UserError: nothing was kept there.
    """
    try:
        return json.loads((out / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{out} holds no experiment: its {FILE} cannot be read: {error}.") from error


FULL = Plan(
    seeds=5,
    points=3,
    studies=(
        Convergence(deltas=(0.5, 1.0, 1.5, 2.0, 3.0), runs=1),
        Resurfacing(steps=(0, 10, 20, 40)),
        Probe(),
        Crops(fractions=(0.25, 0.5, 0.75), points=3),
        Infill(shares=(0.5, 0.1)),
    ),
)
QUICK = Plan(
    seeds=1,
    points=3,
    studies=(
        Convergence(deltas=(0.5, 1.0, 2.0), runs=1),
        Resurfacing(steps=(0, 10, 20)),
        Probe(),
    ),
)
