"""Processes that wait for work, so that not every test has to start Python."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 30.0  # seconds until a hanging test fails
#: Loaded once, by the process that the workers are forks of; loading them takes longer than most tests.
LIBRARIES = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "unlearn_ext"]


class Processes:
    """Worker processes; ``run`` makes some of them a gloo group for one function call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._groups = 0
        self._workers: list[tuple[Any, Connection]] = []

    def run(self, size: int, work: Callable, *args: Any, **options: Any) -> list[Any]:
        """Return what ``work(*args, **options)`` returned in each process, by rank.

        Raises:
            AssertionError: A process failed (with its traceback), or did not answer in time.
        """
        self._groups += 1
        store = self._folder / f"store-{self._groups}"
        while len(self._workers) < size:
            self._workers.append(_start())
        for rank, (_, pipe) in enumerate(self._workers[:size]):
            pipe.send_bytes(pickle.dumps((partial(work, *args, **options), rank, size, str(store))))
        results = []
        for rank, (_, pipe) in enumerate(self._workers[:size]):
            if not pipe.poll(PATIENCE):
                self.end()
                raise AssertionError(f"process {rank} did not answer within {PATIENCE} s")
            error, result = pickle.loads(pipe.recv_bytes())
            results.append((error, result))
        errors = [error for error, _ in results if error]
        assert not errors, "\n".join(errors)
        return [result for _, result in results]

    def end(self) -> None:
        for process, pipe in self._workers:
            process.terminate()
            process.join(PATIENCE)
            pipe.close()
        self._workers.clear()


def _start() -> tuple[Any, Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    return process, here


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        work, rank, size, store = pickle.loads(pipe.recv_bytes())
        error, result = "", None
        try:
            patience = timedelta(seconds=PATIENCE / 2)
            dist.init_process_group("gloo", f"file://{store}", patience, rank=rank, world_size=size)
            result = work()
            dist.barrier()  # no process leaves while another is still connecting
        except Exception:
            error = f"process {rank}:\n{traceback.format_exc()}"
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send_bytes(pickle.dumps((error, result)))
