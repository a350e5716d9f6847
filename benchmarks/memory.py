"""What a step takes besides gradients and state, as the system and the allocator count it."""

import os
from collections.abc import Callable
from pathlib import Path

import torch


def free(device: str) -> int:
    """Bytes that a problem may still take."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_of(step: Callable[[], None], device: str) -> int:
    """Bytes by which memory rose at most while ``step`` ran.

    On the CPU the resident set's high-water mark, in pages (Linux): what the allocator had at hand already is not seen,
    so ``step`` should be the first of its size.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls back to what is resident now
    before = _status("VmRSS")
    step()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
