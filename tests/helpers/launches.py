"""Start the command line, or a script, in processes of its own: one, or several with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from processes import PATIENCE

ROOT = Path(__file__).parents[2]

#: The command line with a journal at every step; the first process is killed after KILL_AFTER steps, 0 for never.
KILLED = """
import os, signal, sys
from unlearn_ext.unlearning import journal
from unlearn_ext.cli import main
journal.SECONDS, left = 0.0, [int(os.environ["KILL_AFTER"])]
checkpoint = journal.Journal.checkpoint
def killing(self, state):
    checkpoint(self, state)
    left[0] -= 1
    if not left[0] and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.checkpoint = killing
main()
"""


def called(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return launched(processes, "-m", "unlearn_ext", *arguments)


def launched(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=4 * PATIENCE,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
