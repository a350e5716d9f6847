"""Audits of unlearned models: what can still be recovered, relearned or inferred; needs the extra `report`."""

from .context import RETRAINED, UNMODIFIED, Context
from .protocol import Audit, Finding, NotRun
from .run import AUDITS, audit, default_points
from .table import AuditRow, read_audit

__all__ = [
    "AUDITS",
    "RETRAINED",
    "UNMODIFIED",
    "Audit",
    "AuditRow",
    "Context",
    "Finding",
    "NotRun",
    "audit",
    "default_points",
    "read_audit",
]
