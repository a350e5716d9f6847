"""What a run has come to, kept in a file of its folder: a run that was killed goes on as if nothing had happened.

What a run does depends on numbers that it computes on the way. A run that goes on therefore does everything once more,
but is told what came of each thing, up to the segment of training that it was killed in. That one it takes up at the
step at which the file was last written. Nothing else is known of how far it was: every kept number has its place by the
order in which it was asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import parallel
from .batches import Task, pixels
from .data.augment import Augment
from .errors import UserError, require
from .lock import locked
from .models import I2IModel
from .settings import Settings
from .writing import UNFINISHED, save_file

SECONDS = 60.0  # of work that a run may lose

T = TypeVar("T")
Tree = Any  # of dicts, lists, numbers, strings and tensors


class Journal:
    """What was computed, in its order. Without a path it keeps nothing, and nothing was computed before.

    Args:
        path: of the file.
        identity: of the run, see :func:`identity`.
        kept: what an earlier process left in the file, if it did.

    Attributes:
        finished: there is nothing left to do.
        begun: an earlier process left something to go on from.
    """

    def __init__(
        self, path: Path | None = None, identity: Mapping[str, Any] | None = None, kept: Tree | None = None
    ) -> None:
        self.finished, self.begun = kept is not None and kept["finished"], kept is not None
        self._path, self._identity = path, identity
        self._entries: list[Tree] = kept["entries"] if kept else []
        self._aside: Tree = kept["aside"] if kept else None
        self._state: Tree | None = kept["state"] if kept else None  # of the segment to take up; None once it was
        self._next = 0
        self._written = time.monotonic()

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
        save_file(self._path, lambda place: pack({"identity": self._identity, **content}, place))
        self._written = time.monotonic()


@contextmanager
def journal(
    folder: str | PathLike[str] | None, result: str, identity: Mapping[str, Any], *, resume: bool
) -> Iterator[Journal]:
    """The journal of a run, which no other process may work on meanwhile; of several processes, the first keeps it.

    Args:
        folder: of the run; None for a run that writes nothing.
        result: name of what the run leaves there when it has finished.
        identity: see :func:`identity`.
        resume: go on with what is there, if anything is.

    Raises:
        UserError: another process is at work there; there is an unfinished run, and it is not to be resumed or is
            another one.
    """
    if folder is None:
        yield Journal()
        return
    path = Path(folder) / f".{result}.journal"
    with locked(path.parent) if parallel.is_first() else nullcontext():
        yield _opened(path, result, identity, resume)


def identity(
    model: I2IModel,
    images: Mapping[str, torch.Tensor],
    task: Task,
    augment: Augment | None,
    settings: Settings,
    **asked: Any,
) -> dict[str, Any]:
    """All that the outcome of a run depends on, by the name that a person knows it by.

    Args:
        model: before unlearning.
        images: of every kind, uint8 [N, C, H, W], or float32 in [-1, 1].
        task: T; it is known by what it makes of some images, and so is the augmentation.
        augment: of training images.
        settings: of the training.
        asked: what else was asked for; numbers, strings and lists of them.
    """
    from . import __version__

    some = pixels(next(iter(images.values()))[:4])
    trained = {name: value for name, value in asdict(settings).items() if name != "memory"}
    things = {"model": _digest(*model.module.state_dict().values()), "task": _digest(task(some))}
    things |= {"augmentation": None if augment is None else _digest(augment(some, 1))}
    things |= {name: _digest(part) for name, part in images.items()}
    return {"version of unlearn_ext": __version__, "family": model.family, **trained, **things, **asked}


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
    return _whole(json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["tree"]), tensors)


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


def _opened(path: Path, result: str, identity: Mapping[str, Any], resume: bool) -> Journal:
    """What was kept, which is large, is held by the journal alone."""
    content = parallel.from_first(lambda: _found(path, result, identity, resume))
    kept = None if content is None else unpacked(content)
    return Journal(path if parallel.is_first() else None, identity, kept)


def _found(path: Path, result: str, identity: Mapping[str, Any], resume: bool) -> bytes | None:
    """What a run may go on from, after what nobody can go on from is removed."""
    folder = path.parent
    _tidy(folder)
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        kept = unpacked(content)
        finished, others = kept["finished"], [name for name in identity if kept["identity"].get(name) != identity[name]]
    except Exception as error:
        raise UserError(f"{path} is no journal of a run ({error}): delete it to begin from the beginning.") from error
    if finished and not (resume and not others and (folder / result).exists()):
        path.unlink()
        return None
    if not resume:
        raise UserError(
            f"{folder} holds an unfinished run: give --resume (in Python resume=True) to go on with it, choose another "
            f"folder, or delete {path} to begin from the beginning."
        )
    if others:
        raise UserError(
            f"{folder} holds an unfinished run of something else, it differs in: {', '.join(others)}; give the command "
            "that it was begun with, or choose another folder."
        )
    return content


def _tidy(folder: Path) -> None:
    """Removes what processes that were killed had not written to its end."""
    for path in folder.glob(f"*{UNFINISHED}"):
        if re.search(r"\.\d+\.part$", path.name):
            shutil.rmtree(path)


def _digest(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
