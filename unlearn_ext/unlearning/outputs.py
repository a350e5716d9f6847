"""The files that a command writes into its folder, and which of them already exist from a run or from the user."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .._utils.atomic_io import saved_files
from ..errors import UserError
from .pareto import ParetoFront

__all__ = ["EVIDENCE", "PAGE", "SIGNATURE", "Outputs", "refuse_foreign", "refuse_other_commands"]

EVIDENCE, SIGNATURE, PAGE = "evidence.json", "evidence.json.sig", "evidence.html"  # of a finished run


@dataclass(frozen=True)
class Outputs:
    """All files and folders that a command writes into its folder.

    Attributes:
        command: name of the command; commands that write the same outputs share a name.
        result: name of the file or folder that is written last; if it exists, the run is complete.
        journal: name of the command's journal.
        models: regular expression for the names of model folders.
        files: paths of files, relative to the folder. The result is first, because files are removed in this order, and
            the result must not outlive the files that it refers to.
    """

    command: str
    result: str
    journal: str
    models: str
    files: tuple[str, ...] = ()

    def find(self, folder: Path, *, has_journal: bool) -> tuple[list[Path], list[Path]]:
        """Return the existing files under these names: those that earlier runs wrote, and unknown ones.

        A model folder that a run wrote lists its own files. Other files belong to a run if there is a journal, because
        a run starts only where none of these names exist. If the folder was copied without hidden files, such as the
        journal, they belong to a run if the result is a valid front.

        Args:
            folder: output folder of the command; it need not exist.
            has_journal: whether an earlier run of the same command left a journal there.
        """
        ours: list[Path] = []
        others: list[Path] = []
        files = [folder / name for name in self.files if os.path.lexists(folder / name)]
        (ours if has_journal or _is_front(folder / self.result) else others).extend(files)
        for model in sorted(folder.glob("*")):
            if re.fullmatch(self.models, model.name):
                saved = None if model.is_symlink() else saved_files(model)
                there = [path for path in model.rglob("*") if not path.is_dir()] if saved else [model]
                ours += [path for path in there if path in (saved or ())]
                others += [path for path in there if path not in (saved or ())]
        return ours, others


def refuse_other_commands(folder: Path, command: str) -> None:
    """Raise ``UserError`` if another command wrote to the folder, because two results would be mixed up."""
    front = _command_of_front(folder)
    wrote = {
        "sweep": (folder / ".front.csv.journal").exists() or front == "sweep",
        # Earlier versions of `run` wrote a journal for each ε, and no front.
        "run": (folder / ".run.journal").exists() or any(folder.glob(".eps-*.journal")) or front == "run",
        "reproduce": (folder / "reproduction.json").exists(),
    }
    for other, is_there in wrote.items():
        if is_there and other != command:
            raise UserError(
                f"{folder} contains the output of `unlearn-ext {other}`, and each command needs a separate folder: "
                "choose another folder."
            )


def _command_of_front(folder: Path) -> str:
    """Return the command whose front is in a folder; "" if there is no front."""
    if not _is_front(folder / "front.csv"):
        return ""
    try:
        return str(json.loads((folder / "metrics.json").read_text(encoding="utf-8")).get("command", "sweep"))
    except (OSError, ValueError, AttributeError):
        return "sweep"


def refuse_foreign(folder: Path, others: Sequence[Path]) -> None:
    """Raise ``UserError`` if there are files that no run wrote under names that this run would write."""
    if others:
        named = ", ".join(str(path.relative_to(folder)) for path in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(
            f"{folder} contains {named}{more}, which no run wrote and this run would replace: move it away or choose "
            "another folder."
        )


def _is_front(path: Path) -> bool:
    try:
        return len(ParetoFront.from_csv(path)) > 0
    except UserError:
        return False
