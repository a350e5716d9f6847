"""The plan of an experiment: its size, its settings and its studies."""

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
    """Size of an experiment.

    Attributes:
        seeds: number of seeds, from 0; a later call may use more.
        points: number of ε between the boundaries that our front has besides its anchors. The studies and the report
            use them; the comparison does not.
        efforts: effort per family.
        studies: additional studies, run with the first seed of each family.
    """

    seeds: int
    points: int
    efforts: Mapping[str, Effort]
    studies: tuple[Study, ...] = ()

    def check(self, out: Path, device: torch.device) -> None:
        """Check that the experiment may write to a folder; write nothing.

        Args:
            out: the folder.
            device: device of the computation; its type affects the last digits of the tables.

        Raises:
            UserError: the folder contains tables of another plan, files that no experiment wrote, or the output of
                another command.
        """
        refuse_other_commands(out, "reproduce")
        if not (out / FILE).exists():
            refuse_foreign(out, [out / name for name in self._names if (out / name).exists()])
            return
        theirs, mine = kept(out), json.loads(self._text(device))
        if differing := [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
            raise UserError(
                f"{out} contains an experiment with other settings (see its {FILE}); they differ in: "
                f"{', '.join(differing)}; choose another folder."
            )

    def keep(self, out: Path, device: torch.device) -> None:
        """Write the plan into the folder of the tables; arguments and errors as in :meth:`check`."""
        self.check(out, device)
        if not (out / FILE).exists():
            write_text(out / FILE, self._text(device))

    def _text(self, device: torch.device) -> str:
        mine: dict[str, Any] = {"dataset": DATASET, "forget_classes": list(FORGET_CLASSES), "task": str(TASK)}
        mine |= {"points": self.points, "device": device.type}
        mine |= {"efforts": {family: asdict(effort) for family, effort in self.efforts.items()}}
        mine |= {"settings": {family: asdict(effort.settings(family, 0)) for family, effort in self.efforts.items()}}
        mine |= {"studies": {study.name: asdict(study) for study in self.studies}}
        return f"{json.dumps(mine, indent=2)}\n"

    @property
    def _names(self) -> list[str]:
        """Names that an experiment writes to its folder, except the folders of fronts, which sweeps check."""
        tables = ("reproduction", "search", "costs", "quality", *(study.name for study in self.studies))
        return [*(f"{name}.csv" for name in tables), "reproduction.html", "figures"]


def kept(out: Path) -> dict[str, Any]:
    """Read the plan that :meth:`Plan.keep` wrote.

    Raises:
        UserError: the folder has no readable plan.
    """
    try:
        plan = json.loads((out / FILE).read_text(encoding="utf-8"))
        if not isinstance(plan, dict):
            raise ValueError("it contains no names with values")
        return plan
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out} contains no experiment: its {FILE} cannot be read: {error}. Choose a folder that "
            "`unlearn-ext reproduce` wrote."
        ) from error
