"""The result of a verification: a status and a sentence for each thing that was compared."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONTRADICTS", "HOLDS", "NOTE", "NOT_AT_HAND", "Line"]

HOLDS, CONTRADICTS, NOT_AT_HAND, NOTE = "holds", "contradicts", "not at hand", "note"


@dataclass(frozen=True)
class Line:
    """One result of the verification.

    Attributes:
        status: ``HOLDS``, ``CONTRADICTS``, ``NOT_AT_HAND`` or ``NOTE``.
        text: what was compared, and what was found.
    """

    status: str
    text: str
