"""Tensors that may be larger than memory: above a limit they are mapped from a temporary file."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import torch

from .._utils.cache import cache_folder, writable_cache_folder
from ..errors import UserError

__all__ = ["MEMORY", "empty", "gather"]

MEMORY = 2.0  # GiB


def empty(shape: Sequence[int], dtype: torch.dtype, limit: float) -> torch.Tensor:
    """Return an uninitialised tensor on the CPU, in memory or mapped from an unnamed file in the cache folder.

    Args:
        shape: shape of the tensor.
        dtype: dtype of the tensor.
        limit: size in GiB above which a file is used.

    Raises:
        UserError: the cache folder cannot be written to, or its disk has not enough free space.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= limit * 2**30:
        return torch.empty(shape, dtype=dtype)
    folder = writable_cache_folder()  # not /tmp, which may itself be in memory
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(*shape)


def gather(source: torch.Tensor, index: torch.Tensor, limit: float) -> torch.Tensor:
    """Return the rows of a tensor at an index (int64 [N]), in a tensor from :func:`empty`."""
    return torch.index_select(source, 0, index, out=empty((len(index), *source.shape[1:]), source.dtype, limit))


def _reserve(file: int, size: int) -> None:
    """Reserve disk space now: a full disk found later, on writing to the mapping, would kill the process."""
    try:
        os.truncate(file, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        raise UserError(
            f"{size / 2**30:.1f} GiB are needed on the disk of {cache_folder()}: {error.strerror}; free some, or set "
            "UNLEARN_EXT_CACHE to a folder on a larger one."
        ) from error
