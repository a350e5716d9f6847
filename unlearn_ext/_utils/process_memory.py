"""Memory of this process: measure its peak, and return free memory to the system."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil

__all__ = ["forget_peak", "peak_mb", "release"]

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def release() -> None:
    """Return free memory to the system; the allocator would otherwise keep fragments as large as one or two models."""
    if hasattr(psutil, "heap_trim"):  # only with some C libraries
        psutil.heap_trim()


def peak_mb() -> float:
    """Return the peak resident memory in MiB, since :func:`forget_peak` if it was called."""
    if _STATUS.exists():  # psutil reports the peak only on Windows
        line = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())
        assert line is not None  # Linux reports it for every process that has memory
        return int(line[1]) / 2**10
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, else KiB


def forget_peak() -> bool:
    """Reset the peak to the memory in use now; return whether the system supports it."""
    if _FORGET.exists():
        _FORGET.write_text("5")
    return _FORGET.exists()
