"""What is kept between runs: downloads and pretrained models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads and pretrained models are kept: ``$UNLEARN_EXT_CACHE``, else ``~/.cache/unlearn_ext``."""
    return Path(os.environ.get("UNLEARN_EXT_CACHE") or Path.home() / ".cache" / "unlearn_ext")
