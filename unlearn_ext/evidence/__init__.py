"""Evidence of a run: what was asked, what was done, what holds and what does not; and its verification."""

from __future__ import annotations

from .record import EVIDENCE, PAGE, SIGNATURE, Labels, refresh, write_evidence

__all__ = ["EVIDENCE", "PAGE", "SIGNATURE", "Labels", "refresh", "write_evidence"]
