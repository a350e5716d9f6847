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

from .._utils import distributed
from .._utils.atomic_io import check_encodable, remove, save_file, tidy
from .._utils.file_lock import FILE as LOCK
from .._utils.file_lock import locked
from ..errors import UserError, require
from .outputs import Outputs, refuse_foreign, refuse_other_commands

__all__ = ["SECONDS", "Journal", "T", "Tree", "check", "journal", "pack", "unpacked"]

SECONDS = 60.0  # of work that a run may lose

T = TypeVar("T")
Tree = Any  # of dicts, lists, numbers, strings and tensors


class Journal:
    """What was computed, in its order. Without a path it keeps nothing, and nothing was computed before.

    Args:
        path: of the file.
        identity: of the run, see :func:`unlearn_ext.unlearning.identity.identity`.
        kept: what an earlier process left in the file, if it did.

    Attributes:
        finished: there is nothing left to do.
    """

    def __init__(
        self, path: Path | None = None, identity: Mapping[str, Any] | None = None, kept: Tree | None = None
    ) -> None:
        self.finished = kept is not None and kept["finished"]
        self._path, self._identity = path, identity
        self._entries: list[Tree] = kept["entries"] if kept else []
        self._aside: Tree = kept["aside"] if kept else None
        self._state: Tree | None = kept["state"] if kept else None  # of the segment to take up; None once it was
        self._next = 0
        self._written, self._is_empty = time.monotonic(), kept is None

    @property
    def is_empty(self) -> bool:
        """Whether its file says nothing but whose the folder is."""
        return self._path is not None and self._is_empty

    def recall(self, compute: Callable[[], T]) -> T:
        """What was computed at this place before, else what is computed now: numbers, tensors, lists and dicts."""
        if self._state is None:
            self._entries.append(compute())
        self._next += 1
        return self._entries[self._next - 1]

    def set_aside(self, compute: Callable[[], T]) -> T:
        """As :meth:`recall`, for what is large and replaces what was set aside before."""
        if self._state is None:
            self._aside = compute()
        return self._aside

    def begin_segment(self) -> Tree | None:
        """What :meth:`checkpoint` or :meth:`end_segment` last kept of the segment that begins; None where nothing."""
        if self._state is None:
            return None
        if self._next < len(self._entries):
            return self._entries[self._next]
        state, self._state = self._state, None
        return state

    def checkpoint(self, state: Callable[[], Tree]) -> None:
        """Write the file, once in ``SECONDS``, with the state of the segment."""
        if self._path is not None and time.monotonic() - self._written >= SECONDS:
            self._write(finished=False, entries=self._entries, aside=self._aside, state=state())

    def end_segment(self, result: Tree) -> None:
        """Keep what is left of a segment once others follow."""
        self.recall(lambda: result)

    def finish(self) -> None:
        """Leave no more than that the run is finished."""
        if self._path is not None:
            self._write(finished=True, entries=[], aside=None, state=None)

    def _write(self, **content: Tree) -> None:
        _write(self._path, self._identity, **content)
        self._written, self._is_empty = time.monotonic(), False


@contextmanager
def journal(
    folder: str | PathLike[str] | None, outputs: Outputs, identity: Mapping[str, Any], *, resume: bool, force: bool
) -> Iterator[Journal]:
    """Open the journal of a run, and keep other processes out of its folder; of several processes, the first does.

    A run that begins removes what an earlier one wrote, after its own journal says whose folder it is.

    Args:
        folder: of the run; None for a run that writes nothing.
        outputs: what the run writes there.
        identity: of the run, see :func:`unlearn_ext.unlearning.identity.identity`.
        resume: go on with the run that is there, if one is.
        force: replace the run that is there, if one is.

    Raises:
        UserError: in every process; see :func:`check`.
    """
    if folder is None:
        yield Journal()
        return
    path = _path(folder, outputs)
    with ExitStack() as held:

        def opened() -> bytes | None:
            decide = partial(_decide, path, outputs, identity, resume=resume, force=force, complete=True)
            if not (path.parent / LOCK).exists():
                decide()  # a folder that is refused gets not even a lock
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
        run = Journal(path if distributed.is_first() else None, identity, kept)
        try:
            yield run
        finally:
            if run.is_empty and outputs.find(path.parent, has_journal=True) == ([], []):
                path.unlink(missing_ok=True)  # else a run that failed at once would keep the next one out


def check(folder: str | PathLike[str], outputs: Outputs, part: Mapping[str, Any], *, resume: bool, force: bool) -> None:
    """Check that a run may write to a folder, before anything is loaded or trained for it.

    Args:
        folder: of the run; nothing is written to it.
        outputs: what the run writes there.
        part: of the run's identity, as much as is known; see :mod:`unlearn_ext.unlearning.identity`.
        resume: go on with the run that is there, if one is.
        force: replace the run that is there, if one is.

    Raises:
        UserError: the folder holds a run, finished or not, and neither ``resume`` nor ``force`` is given; or the run
            that is to be resumed differs; or the folder holds files of these names that no run wrote, or what another
            command wrote; or another process is at work there; or both ``resume`` and ``force`` are given.
    """
    path = _path(folder, outputs)
    with locked(path.parent) if (path.parent / LOCK).exists() else nullcontext():
        _decide(path, outputs, part, resume=resume, force=force, complete=False)


def pack(tree: Tree, path: Path) -> None:
    """Write a tree as a file of safetensors, its tensors by their number and the rest as JSON.

    Reading it runs no code; writing it takes no memory beyond the tensors'.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_plain(tree, tensors))
    require("safetensors.torch", "images").save_file(tensors, path, {"tree": text})


def unpacked(content: bytes) -> Tree:
    """What :func:`pack` wrote; tuples as lists, tensors on the CPU."""
    tensors = require("safetensors.torch", "images").load(content)
    length = int.from_bytes(content[:8], "little")  # of the header, which the library gives only of files
    return _whole(_tree(content[8 : 8 + length]), tensors)


def _tree(header: bytes) -> Any:
    """Return the tree as JSON knows it, from the header of a file of safetensors."""
    return json.loads(json.loads(header)["__metadata__"]["tree"])


def _plain(part: Tree, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree as JSON knows it; its tensors are added to those."""
    if isinstance(part, torch.Tensor):
        tensors[str(len(tensors))] = part.detach().cpu().contiguous()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(part, dict):
        return {"items": [[key, _plain(value, tensors)] for key, value in part.items()]}
    return [_plain(value, tensors) for value in part] if isinstance(part, (list, tuple)) else part


def _whole(part: Any, tensors: Mapping[str, torch.Tensor]) -> Tree:
    """What :func:`_plain` made plain."""
    if isinstance(part, dict):
        if "tensor" in part:
            return tensors[part["tensor"]]
        return {key: _whole(value, tensors) for key, value in part["items"]}
    return [_whole(value, tensors) for value in part] if isinstance(part, list) else part


def _path(folder: str | PathLike[str], outputs: Outputs) -> Path:
    check_encodable(folder)
    return Path(folder) / f".{outputs.result}.journal"


def _decide(
    path: Path, outputs: Outputs, mine: Mapping[str, Any], *, resume: bool, force: bool, complete: bool
) -> tuple[bool, list[Path]]:
    """Return whether to go on with a run, and else what it would replace; raise ``UserError``, see :func:`check`.

    Args:
        path: of the journal.
        outputs: what the run writes.
        mine: its identity.
        resume: go on with the run that is there, if one is.
        force: replace the run that is there, if one is.
        complete: ``mine`` is the whole identity; else keys that are missing in it do not count.
    """
    if resume and force:
        raise UserError("--resume goes on with the run that is there and --force replaces it: give one of them.")
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
        return resume and kept["state"] is not None, ours
    if finished:
        raise UserError(
            f"{result} is the result of a finished run: choose another folder, give --resume to see it again if the "
            "command is the same (in Python resume=True), or --force to replace it (force=True)."
        )
    raise UserError(
        f"{folder} holds an unfinished run: give --resume to go on with it (in Python resume=True), choose another "
        "folder, or give --force to replace it (force=True)."
    )


def _refuse_different(
    path: Path, kept: Mapping[str, Any] | None, mine: Mapping[str, Any], finished: bool, complete: bool
) -> None:
    """Raise ``UserError`` where the run that is there is another one, or nothing says which one it is."""
    what = f"{path.parent} holds {'a finished' if finished else 'an unfinished'} run"
    if kept is None:
        raise UserError(
            f"{what} without its journal {path.name}, so nothing says whether it is the same: choose another folder, "
            "or give --force to replace it (in Python force=True)."
        )
    theirs = kept["identity"]
    names = {**mine, **theirs} if complete else mine
    differing = [name for name in names if name not in theirs or name not in mine or theirs[name] != mine[name]]
    if differing:
        raise UserError(
            f"{what} of something else, it differs in: {', '.join(differing)}; give the command that it was begun "
            "with, choose another folder, or give --force to replace it (in Python force=True)."
        )


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except Exception as error:
        raise UserError(f"{path} is no journal of a run ({error}): delete it to begin from the beginning.") from error


def _write(path: Path, identity: Mapping[str, Any] | None, **content: Tree) -> None:
    save_file(path, lambda place: pack({"identity": identity, **content}, place))


def _header(path: Path) -> dict[str, Any]:
    """Return a journal without its tensors, which are large: ``identity``, ``finished``, and ``state`` or None."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, path.stat().st_size))  # of a damaged file, the length may be anything
    kept = _whole(_tree(header), defaultdict(lambda: None))
    return {name: kept[name] for name in ("identity", "finished", "state")}
