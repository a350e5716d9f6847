"""What is killed at random moments and resumed ends with the same bytes; `make fuzz` kills 50 times."""

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


@pytest.mark.parametrize("work", ["sweep", "chain"])
def test_killed_work_ends_with_the_same_bytes(work: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "kills.py"), str(KILLS), work],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all ended with the same bytes" in done.stdout
