"""Memory of this process: its peak, and free memory given back to the system."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil

__all__ = ["forget_peak", "peak_mb", "release"]

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def release() -> None:
    """Give free memory back to the system; the allocator would keep one or two models' worth, in pieces."""
    if hasattr(psutil, "heap_trim"):  # not with every C library
        psutil.heap_trim()


def peak_mb() -> float:
    """Return the peak resident memory in MiB, since :func:`forget_peak` if it was called."""
    if _STATUS.exists():  # psutil knows the peak on Windows alone
        return int(re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())[1]) / 2**10
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts in bytes


def forget_peak() -> bool:
    """Start a new peak from the memory in use now; return whether the system can."""
    if _FORGET.exists():
        _FORGET.write_text("5")
    return _FORGET.exists()
