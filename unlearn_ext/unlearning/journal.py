"""The journal of a run: a file in its folder from which a killed run resumes with the same results.

A resumed run executes the same code again from the start. Up to the segment of training in which the run was killed, it
reads each result from the journal instead of computing it. It resumes that segment at the step at which the journal was
last written. Results are stored in the order in which the run asks for them; the journal has no other record of the
run's progress.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch

from .._torch_internals import is_dtensor
from .._utils import distributed
from .._utils.atomic_io import check_encodable, remove, save_file, tidy
from .._utils.file_lock import FILE as LOCK
from .._utils.file_lock import locked
from ..errors import UserError, require
from .outputs import Outputs, refuse_foreign, refuse_other_commands

__all__ = ["SECONDS", "Journal", "T", "Tree", "check", "journal", "pack", "unpacked"]

SECONDS = 60.0  # between checkpoints: the work that a killed run may lose

T = TypeVar("T")
Tree = Any  # nested dicts, lists, numbers, strings and tensors


class Journal:
    """Results in the order in which a run computes them. Without a path, nothing is written.

    Several processes call it together, and the first one writes.

    Args:
        path: path of the file.
        identity: identity of the run, see :func:`unlearn_ext.unlearning.identity.identity`.
        kept: content of the file that an earlier process left, if any.

    Attributes:
        finished: whether the run is finished.
    """

    def __init__(
        self, path: Path | None = None, identity: Mapping[str, Any] | None = None, kept: Tree | None = None
    ) -> None:
        self.finished = kept is not None and kept["finished"]
        self._path, self._identity = path, identity
        self._entries: list[Tree] = kept["entries"] if kept else []
        self._aside: Tree = kept["aside"] if kept else None
        self._state: Tree | None = kept["state"] if kept else None  # of the interrupted segment, until resumed
        self._next = 0
        self._written, self._is_empty = time.monotonic(), kept is None

    @property
    def is_empty(self) -> bool:
        """Whether its file contains only the identity of the run."""
        return self._path is not None and self._is_empty

    def recall(self, compute: Callable[[], T]) -> T:
        """Return the next stored result; if there is none, compute and store it.

        A result may consist of numbers, tensors, lists and dicts.
        """
        if self._state is None:
            self._entries.append(compute())
        self._next += 1
        return self._entries[self._next - 1]

    def set_aside(self, compute: Callable[[], T]) -> T:
        """Do the same as :meth:`recall` for a large result, but keep only the last one."""
        if self._state is None:
            self._aside = compute()
        return self._aside

    def begin_segment(self) -> Tree | None:
        """Return what :meth:`checkpoint` or :meth:`end_segment` stored for the segment that begins, or None."""
        if self._state is None:
            return None
        if self._next < len(self._entries):
            return self._entries[self._next]
        state, self._state = self._state, None
        return state

    def checkpoint(self, state: Callable[[], Tree]) -> None:
        """Write the file with the state of the segment, at most once in ``SECONDS``."""
        if self._path is None:
            return
        is_due = distributed.is_first() and time.monotonic() - self._written >= SECONDS
        if distributed.any_says(is_due):  # in every process, because shards are gathered
            self._write(finished=False, entries=self._entries, aside=self._aside, state=state())

    def end_segment(self, result: Tree) -> None:
        """Store the result of a finished segment."""
        self.recall(lambda: result)

    def finish(self) -> None:
        """Mark the run as finished in the file, and remove all results from it."""
        if self._path is not None:
            self._write(finished=True, entries=[], aside=None, state=None)

    def _write(self, **content: Tree) -> None:
        assert self._path is not None  # the callers check it
        gathered = _gathered(content)
        if distributed.is_first():
            _write(self._path, self._identity, **gathered)
        self._written, self._is_empty = time.monotonic(), False


@contextmanager
def journal(
    folder: str | PathLike[str] | None, outputs: Outputs, identity: Mapping[str, Any], *, resume: bool, force: bool
) -> Iterator[Journal]:
    """Open the journal of a run, and lock its folder against other processes.

    A new run first writes its own journal, and then removes the files of an earlier run. With several processes, only
    the first one locks the folder and writes.

    Args:
        folder: folder of the run; None for a run that writes nothing.
        outputs: the files that the run writes there.
        identity: identity of the run, see :func:`unlearn_ext.unlearning.identity.identity`.
        resume: continue the run in the folder, if there is one.
        force: replace the run in the folder, if there is one.

    Raises:
        UserError: see :func:`check`; it is raised in every process.
    """
    if folder is None:
        yield Journal()
        return
    path = _path(folder, outputs)
    with ExitStack() as held:

        def opened() -> bytes | None:
            decide = partial(_decide, path, outputs, identity, resume=resume, force=force, complete=True)
            if not (path.parent / LOCK).exists():
                decide()  # before locking, so that a refused folder stays unchanged
            held.enter_context(locked(path.parent))
            tidy(path.parent)
            resumed, replaced = decide()
            if resumed:
                return path.read_bytes()
            _write(path, identity, finished=False, entries=[], aside=None, state=None)
            remove(replaced, path.parent)
            return None

        content = distributed.from_first(opened)
        kept = None if content is None else _read(path, lambda: unpacked(content))
        run = Journal(path, identity, kept)
        try:
            yield run
        finally:
            if distributed.is_first() and run.is_empty and outputs.find(path.parent, has_journal=True) == ([], []):
                path.unlink(missing_ok=True)  # otherwise it would block the next run


def check(folder: str | PathLike[str], outputs: Outputs, part: Mapping[str, Any], *, resume: bool, force: bool) -> None:
    """Check that a run may write to a folder, before anything is loaded or trained for it.

    Args:
        folder: folder of the run; nothing is written to it.
        outputs: the files that the run writes there.
        part: the known part of the run's identity, see :mod:`unlearn_ext.unlearning.identity`.
        resume: continue the run in the folder, if there is one.
        force: replace the run in the folder, if there is one.

    Raises:
        UserError: the folder contains a run, finished or not, and neither ``resume`` nor ``force`` is given; or the
            identity of the run to resume differs; or the folder contains files of these names that no run wrote, or
            the output of another command; or another process uses the folder; or both ``resume`` and ``force`` are
            given.
    """
    path = _path(folder, outputs)
    with locked(path.parent) if (path.parent / LOCK).exists() else nullcontext():
        _decide(path, outputs, part, resume=resume, force=force, complete=False)


def pack(tree: Tree, path: Path) -> None:
    """Write a tree to a safetensors file: its tensors under numbers as names, the rest as JSON in the metadata.

    Reading the file runs no code. Writing it needs no memory beyond that of the tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_plain(tree, tensors))
    require("safetensors.torch", "images").save_file(tensors, path, {"tree": text})


def unpacked(content: bytes) -> Tree:
    """Return the tree that :func:`pack` wrote; tuples become lists, and tensors are on the CPU."""
    tensors = require("safetensors.torch", "images").load(content)
    length = int.from_bytes(content[:8], "little")  # of the header; the library reads headers only from files
    return _whole(_tree(content[8 : 8 + length]), tensors)


def _gathered(part: Tree) -> Tree:
    """Return a tree whose DTensors are gathered on the CPU of the first process; in the others, they are empty."""
    if isinstance(part, torch.Tensor) and is_dtensor(part):
        whole = distributed.whole(part)
        return whole.cpu() if distributed.is_first() else whole.new_empty(0)
    if isinstance(part, dict):
        return {key: _gathered(value) for key, value in part.items()}
    return [_gathered(value) for value in part] if isinstance(part, (list, tuple)) else part


def _tree(header: bytes) -> Any:
    """Return the tree in its JSON form, from the header of a safetensors file."""
    return json.loads(json.loads(header)["__metadata__"]["tree"])


def _plain(part: Tree, tensors: dict[str, torch.Tensor]) -> Any:
    """Return the tree in its JSON form; add its tensors to ``tensors``, and replace them by their numbers."""
    if isinstance(part, torch.Tensor):
        tensors[str(len(tensors))] = part.detach().cpu().contiguous()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(part, dict):
        return {"items": [[key, _plain(value, tensors)] for key, value in part.items()]}
    return [_plain(value, tensors) for value in part] if isinstance(part, (list, tuple)) else part


def _whole(part: Any, tensors: Mapping[str, torch.Tensor | None]) -> Tree:
    """Return the tree whose JSON form is given; the inverse of :func:`_plain`."""
    if isinstance(part, dict):
        if "tensor" in part:
            return tensors[part["tensor"]]
        return {key: _whole(value, tensors) for key, value in part["items"]}
    return [_whole(value, tensors) for value in part] if isinstance(part, list) else part


def _path(folder: str | PathLike[str], outputs: Outputs) -> Path:
    check_encodable(folder)
    return Path(folder) / outputs.journal


def _decide(
    path: Path, outputs: Outputs, mine: Mapping[str, Any], *, resume: bool, force: bool, complete: bool
) -> tuple[bool, list[Path]]:
    """Return whether to resume the run in the folder, and the files that a new run would replace.

    Args:
        path: path of the journal.
        outputs: the files that the run writes.
        mine: identity of the run.
        resume: continue the run in the folder, if there is one.
        force: replace the run in the folder, if there is one.
        complete: whether ``mine`` is the whole identity; if not, missing keys are not compared.

    Raises:
        UserError: see :func:`check`.
    """
    if resume and force:
        raise UserError("--resume continues the run in the folder and --force replaces it: give one of them, not both.")
    folder, result = path.parent, path.parent / outputs.result
    refuse_other_commands(folder, outputs.command)
    kept = _read(path, lambda: _header(path)) if path.exists() else None
    ours, others = outputs.find(folder, has_journal=kept is not None)
    if not ours and (kept is None or kept["state"] is None):
        refuse_foreign(folder, others)
        return False, []
    finished = result.exists() and (kept is None or kept["finished"])
    if resume:
        _refuse_different(path, kept, mine, finished, complete)
        if finished:
            return True, []
    refuse_foreign(folder, others)
    if resume or force:
        return resume and kept is not None and kept["state"] is not None, ours
    if finished:
        raise UserError(
            f"{result} is the result of a finished run: choose another folder, give --resume to show it again if the "
            "command is the same (in Python resume=True), or --force to replace it (force=True)."
        )
    raise UserError(
        f"{folder} contains an unfinished run: give --resume to continue it (in Python resume=True), choose another "
        "folder, or give --force to replace it (force=True)."
    )


def _refuse_different(
    path: Path, kept: Mapping[str, Any] | None, mine: Mapping[str, Any], finished: bool, complete: bool
) -> None:
    """Raise ``UserError`` if the run in the folder has another identity, or no journal to tell."""
    what = f"{path.parent} contains {'a finished' if finished else 'an unfinished'} run"
    if kept is None:
        raise UserError(
            f"{what} without its journal {path.name}, so it is unknown whether it is the same run: choose another "
            "folder, or give --force to replace it (in Python force=True)."
        )
    theirs = kept["identity"]
    names = {**mine, **theirs} if complete else mine
    differing = [name for name in names if name not in theirs or name not in mine or theirs[name] != mine[name]]
    if differing:
        raise UserError(
            f"{what} that differs in: {', '.join(differing)}; repeat the command that started it, choose another "
            "folder, or give --force to replace it (in Python force=True)."
        )


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except Exception as error:
        raise UserError(f"{path} is not the journal of a run ({error}): delete it to start again.") from error


def _write(path: Path, identity: Mapping[str, Any] | None, **content: Tree) -> None:
    save_file(path, lambda place: pack({"identity": identity, **content}, place))


def _header(path: Path) -> dict[str, Any]:
    """Return ``identity``, ``finished`` and ``state`` of a journal without reading its tensors, which are large."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, path.stat().st_size))  # the length is wrong if the file is damaged
    kept = _whole(_tree(header), defaultdict(lambda: None))
    return {name: kept[name] for name in ("identity", "finished", "state")}
