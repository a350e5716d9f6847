"""What the experiment is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .._utils.atomic_io import write_text
from ..demo import DATASET, FORGET_CLASSES, TASK
from ..errors import UserError
from ..unlearning.outputs import refuse_foreign, refuse_other_commands
from .effort import Effort
from .studies.study import Study

__all__ = ["FILE", "Plan", "kept"]

FILE = "reproduction.json"


@dataclass(frozen=True)
class Plan:
    """How thorough it is.

    Attributes:
        seeds: how many, from 0; more may be asked for later.
        points: ε between the boundaries, which our front has beside its anchors. They are for the studies and the
            page, and do not enter the comparison.
        efforts: by family.
        studies: questions beside it, of the first seed of each family.
    """

    seeds: int
    points: int
    efforts: Mapping[str, Effort]
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
        mine |= {"points": self.points, "device": device.type}
        mine |= {"efforts": {family: asdict(effort) for family, effort in self.efforts.items()}}
        mine |= {"settings": {family: asdict(effort.settings(family, 0)) for family, effort in self.efforts.items()}}
        mine |= {"studies": {study.name: asdict(study) for study in self.studies}}
        return f"{json.dumps(mine, indent=2)}\n"

    @property
    def _names(self) -> list[str]:
        """Names of what an experiment writes into its folder, but for the folders of its fronts, which sweeps check."""
        tables = ("reproduction", "search", "costs", "quality", *(study.name for study in self.studies))
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
