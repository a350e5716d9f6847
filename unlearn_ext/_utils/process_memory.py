"""Memory that this process takes of the machine: its peak, and what is free given back."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def release() -> None:
    """Gives what is free back to the system: glibc would keep a model's worth or two, in pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_mb() -> float:
    """Peak resident memory, since :func:`forget_peak` if it was called."""
    if _STATUS.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts in bytes


def forget_peak() -> bool:
    """Let the peak be what is taken now; whether the system can."""
    if _FORGET.exists():
        _FORGET.write_text("5")
    return _FORGET.exists()
