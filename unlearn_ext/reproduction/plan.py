"""What the experiment is made of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings import Settings
from ..tasks import CenterCrop
from ..writing import write_atomically

DATASET = "mnist"
FORGET_CLASSES = (0, 1)
TASK = CenterCrop(0.5)
FILE = "reproduction.json"


@dataclass(frozen=True)
class Plan:
    """How thorough it is.

    Attributes:
        seeds: how many, from 0; more may be asked for later.
        points: ε between the boundaries.
        settings: of every run of ours; the baselines have the same minibatches and learning rate. Of the seed, those
            above take the place.
    """

    seeds: int
    points: int
    settings: Settings

    def keep(self, out: Path) -> None:
        """Write it beside the tables.

        Raises:
            UserError: the tables there are of another plan.
        """
        mine = {"dataset": DATASET, "forget_classes": list(FORGET_CLASSES), "task": str(TASK)}
        mine |= {"points": self.points, "settings": asdict(self.settings)}
        if not (out / FILE).exists():
            write_atomically(out / FILE, (json.dumps(mine, indent=2) + "\n").encode())
        elif kept(out) != mine:
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


FULL = Plan(seeds=5, points=7, settings=Settings())
QUICK = Plan(seeds=1, points=3, settings=Settings(steps=20))
