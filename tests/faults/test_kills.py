"""Sweeps that are killed at random moments and resumed end with the same bytes; `make fuzz` kills 50 times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("diffusers")
ROOT = Path(__file__).parents[2]
KILLS = 50 if os.environ.get("UNLEARN_EXT_FUZZ") else 3


def test_killed_sweeps_end_with_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "kills.py"), str(KILLS)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all ended with the same bytes" in done.stdout
