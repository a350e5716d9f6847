"""Scripts in forked children of one process that has loaded the large libraries, which take longer than the scripts."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import torch

LIBRARIES = ["torch", "unlearn_ext", "transformers.trainer", "transformers.models.gpt2", "peft", "lightning"]


def run_script(path: Path, folder: Path, patience: float) -> str:
    """Run a script as ``__main__`` in ``folder``, with one thread, and return its standard output.

    Raises:
        AssertionError: it failed (with what it printed), or did not end within ``patience`` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    out, err = folder / "stdout", folder / "stderr"
    process = context.Process(target=_run, args=(path, folder, out, err))
    process.start()
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode == 0, f"exit code {process.exitcode}\n{err.read_text(encoding='utf-8')}"
    return out.read_text(encoding="utf-8")


def _run(path: Path, folder: Path, out: Path, err: Path) -> None:
    os.chdir(folder)
    sys.argv = [str(path)]
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
        stream.reconfigure(encoding="utf-8")
    torch.set_num_threads(1)
    runpy.run_path(str(path), run_name="__main__")
