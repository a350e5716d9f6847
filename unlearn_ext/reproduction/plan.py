"""What the experiment is made of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..demo import CHOICES, DATASET, FORGET_CLASSES, TASK
from ..errors import UserError
from ..outputs import refuse_foreign, refuse_other_commands
from ..writing import write_text
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

    def check(self, out: Path, device: torch.device) -> None:
        """Check that the experiment may write to a folder, before anything is written.

        Args:
            out: the folder.
            device: what the tables are made on; its kind decides their last digits.

        Raises:
            UserError: the tables there are of another plan, or the folder holds files that no experiment wrote, or what
                another command wrote.
        """
        refuse_other_commands(out, "reproduce")
        if not (out / FILE).exists():
            refuse_foreign(out, [out / name for name in self._names if (out / name).exists()])
            return
        theirs, mine = kept(out), json.loads(self._text(device))
        if differing := [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
            raise UserError(
                f"{out} holds an experiment with other settings, it differs in: {', '.join(differing)}; see {FILE} "
                "there, and choose another folder."
            )

    def keep(self, out: Path, device: torch.device) -> None:
        """Write it beside the tables; the arguments and errors are those of :meth:`check`."""
        self.check(out, device)
        if not (out / FILE).exists():
            write_text(out / FILE, self._text(device))

    def _text(self, device: torch.device) -> str:
        mine = {"dataset": DATASET, "forget_classes": list(FORGET_CLASSES), "task": str(TASK)}
        mine |= {"points": self.points, "baseline_lr": BASELINE_LR, "device": device.type}
        mine |= {"settings": {family: asdict(choice.settings) for family, choice in CHOICES.items()}}
        mine |= {"studies": {study.name: asdict(study) for study in self.studies}}
        return f"{json.dumps(mine, indent=2)}\n"

    @property
    def _names(self) -> list[str]:
        """Names of what an experiment writes into its folder, but for the folders of its fronts, which sweeps check."""
        tables = ("reproduction", "costs", "quality", *(study.name for study in self.studies))
        return [*(f"{name}.csv" for name in tables), "reproduction.html", "figures"]


def kept(out: Path) -> dict[str, Any]:
    """What :meth:`Plan.keep` wrote.

    Raises:
        UserError: nothing was kept there.
    """
    try:
        plan = json.loads((out / FILE).read_text(encoding="utf-8"))
        if not isinstance(plan, dict):
            raise ValueError("it holds no names with values")
        return plan
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
