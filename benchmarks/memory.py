"""Memory that a step uses in addition to gradients and state, as counted by the system or the allocator."""

import os
from collections.abc import Callable
from pathlib import Path

import torch


def free(device: str) -> int:
    """Return the free memory in bytes."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_of(step: Callable[[], None], device: str) -> int:
    """Return the largest growth of memory, in bytes, while ``step`` runs.

    On the CPU (Linux only), this is the growth of the resident set's peak, in whole pages. It does not include memory
    that the allocator reuses, so ``step`` should be the first step of its size.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident set
    before = _status("VmRSS")
    step()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
