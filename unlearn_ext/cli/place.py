"""The output folder of a command, and whether to resume or replace a run that is already there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.distributed import is_first

if TYPE_CHECKING:
    from ..unlearning.epsilons import Epsilon
    from ..unlearning.outputs import Outputs

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """The output folder of a command, and the models asked for.

    Attributes:
        folder: folder of the run.
        outputs: what the command writes there.
        asked: the models asked for, as part of the run's identity.
        resume: whether to resume a run that is already there.
        force: whether to replace a run that is already there.
    """

    folder: Path
    outputs: Outputs
    asked: Mapping[str, Any]
    resume: bool
    force: bool

    @classmethod
    def of_sweep(cls, folder: Path, points: int, pictures: str, resume: bool, force: bool) -> Place:
        """Return the output folder of a sweep.

        Raises:
            UserError: there is no such choice of pictures.
        """
        from ..unlearning.phases import OUTPUTS, wanted

        return cls(folder, OUTPUTS, wanted(points, None, pictures), resume, force)

    @classmethod
    def of_run(cls, folder: Path, epsilons: Mapping[str, Epsilon], pictures: str, resume: bool, force: bool) -> Place:
        """Return the output folder of a run to the ε of one or several requests, by their names.

        Raises:
            UserError: there is no such choice of pictures.
        """
        from ..unlearning.single import OUTPUTS, wanted

        return cls(folder, OUTPUTS, wanted(dict(epsilons), pictures), resume, force)

    def check(self, known: Mapping[str, Any]) -> None:
        """Check that the run may be written here; only the first process checks.

        Args:
            known: the part of the run's identity that is already known, apart from ``asked``.

        Raises:
            UserError: see :func:`unlearn_ext.unlearning.journal.check`.
        """
        from ..unlearning.journal import check

        if is_first():
            check(self.folder, self.outputs, {**known, **self.asked}, resume=self.resume, force=self.force)
