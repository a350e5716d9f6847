"""Memory of this process: measure its peak, and return free memory to the system."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ..errors import require

__all__ = ["forget_peak", "peak_mb", "release"]

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def release() -> None:
    """Return free memory to the system; the allocator would otherwise keep fragments as large as one or two models.

    Raises:
        UserError: psutil is not installed.
    """
    psutil = require("psutil", "images")
    if hasattr(psutil, "heap_trim"):  # only with some C libraries
        psutil.heap_trim()


def peak_mb() -> float:
    """Return the peak resident memory in MiB, since :func:`forget_peak` if it was called.

    Raises:
        UserError: psutil is needed on this system, and is not installed.
    """
    status = _STATUS.read_text() if _STATUS.exists() else ""  # psutil reports the peak only on Windows
    if line := re.search(r"VmHWM:\s+(\d+)", status):  # some kernels do not report it
        return int(line[1]) / 2**10
    if sys.platform == "win32":
        return float(require("psutil", "images").Process().memory_info().peak_wset) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, else KiB


def forget_peak() -> bool:
    """Reset the peak to the memory in use now; return whether the system supports it."""
    if _FORGET.exists():
        _FORGET.write_text("5")
    return _FORGET.exists()
