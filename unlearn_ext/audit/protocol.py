"""The protocol of the audits: a name, what it measures, and a function from a context to findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .estimates import Estimate

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Audit", "Finding", "NotRun"]


class NotRun(Exception):
    """An audit is not possible here; the message is a clause that says why."""


@dataclass(frozen=True)
class Finding:
    """One measure of one model.

    Attributes:
        measure: what was measured.
        forget: the number for images to forget; NaN if there is none.
        retain: the number for images to retain; NaN if there is none.
        chance: the number for images to forget without any information from the model; NaN if there is none.
        note: confidence intervals and numbers of images, or ``"not run: "`` and the reason.
    """

    measure: str
    forget: float = math.nan
    retain: float = math.nan
    chance: float = math.nan
    note: str = ""

    @classmethod
    def of(
        cls,
        measure: str,
        estimates: Iterable[Estimate | None],
        *,
        chance: float = math.nan,
        more: str = "",
    ) -> Finding:
        """Return a finding whose note gives the intervals and the numbers of images.

        Args:
            measure: what was measured.
            estimates: the number for images to forget and, if there is one, that for images to retain.
            chance: see the class.
            more: end of the note.
        """
        known = {name: side for name, side in zip(("forget", "retain"), estimates, strict=False) if side is not None}
        values = {name: side.value for name, side in known.items()}
        parts = [f"{name} {side}" for name, side in known.items()]
        return cls(measure, **values, chance=chance, note="; ".join([*parts, more] if more else parts))

    @classmethod
    def not_run(cls, measure: str, why: object) -> Finding:
        """Return a finding without numbers, and with the reason."""
        return cls(measure, note=f"not run: {why}")


@dataclass(frozen=True)
class Audit:
    """One audit.

    Attributes:
        name: name in tables.
        says: what it measures, and what it does not.
        findings: measures one model; raises :class:`NotRun` if the audit is not possible.
    """

    name: str
    says: str
    findings: Callable[[Context], Iterable[Finding]]

    def run(self, context: Context) -> list[Finding]:
        """Measure one model; if that is not possible, return a finding with the reason."""
        found: list[Finding] = []
        try:
            found.extend(self.findings(context))
        except NotRun as why:
            found.append(Finding.not_run(self.name, why))
        return found
