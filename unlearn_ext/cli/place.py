"""Where a command writes its run, and what may become of a run that is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.distributed import is_first

if TYPE_CHECKING:
    from ..unlearning.outputs import Outputs

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """A folder, and what was asked for it.

    Attributes:
        folder: of the run.
        outputs: what the command writes there.
        asked: which models, as part of the run's identity.
        resume: go on with the run that is there.
        force: replace the run that is there.
    """

    folder: Path
    outputs: Outputs
    asked: Mapping[str, Any]
    resume: bool
    force: bool

    @classmethod
    def of_sweep(cls, folder: Path, points: int, resume: bool, force: bool) -> Place:
        """Return the place of a sweep."""
        from ..unlearning.phases import OUTPUTS, wanted

        return cls(folder, OUTPUTS, wanted(points, None), resume, force)

    @classmethod
    def of_run(cls, folder: Path, epsilon: float, resume: bool, force: bool) -> Place:
        """Return the place of one model at one ε, a folder of its own in the folder.

        Raises:
            UserError: ε is no finite number.
        """
        from ..unlearning.outputs import one_model
        from ..unlearning.pareto import point_name
        from ..unlearning.validation import check_epsilon

        check_epsilon(epsilon)
        return cls(folder, one_model("run", point_name(epsilon)), {"epsilon": epsilon}, resume, force)

    @property
    def result(self) -> Path:
        """What the command writes last."""
        return self.folder / self.outputs.result

    def check(self, known: Mapping[str, Any]) -> None:
        """Check that the run may be written here; of several processes, the first does.

        Args:
            known: the part of the run's identity that is known besides ``asked``.

        Raises:
            UserError: see :func:`unlearn_ext.unlearning.journal.check`.
        """
        from ..unlearning.journal import check

        if is_first():
            check(self.folder, self.outputs, {**known, **self.asked}, resume=self.resume, force=self.force)
