"""What a command writes into its folder, and what of it is there already: a run's own files, or somebody else's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .._utils.atomic_io import saved_files
from ..errors import UserError
from .pareto import ParetoFront

__all__ = ["Outputs", "one_model", "refuse_foreign", "refuse_other_commands"]


@dataclass(frozen=True)
class Outputs:
    """Everything that a command writes into its folder.

    Attributes:
        command: its name; a command that is another one's front end has the same.
        result: name of what is written last: where that is, the run is whole.
        models: regular expression of the names of the models' folders.
        files: paths of files, relative to the folder; the result first, since they are removed in this order, and a
            result must not be there without what it names.
    """

    command: str
    result: str
    models: str
    files: tuple[str, ...] = ()

    def find(self, folder: Path, *, has_journal: bool) -> tuple[list[Path], list[Path]]:
        """Return the files that are there under these names: what earlier runs wrote, and what nobody knows of.

        A run's folder of a model lists its files. Other files are the run's if it left a journal, since it begins only
        where nothing lies under these names; of a copy without hidden files, its front says as much.

        Args:
            folder: where the command is to write; it need not exist.
            has_journal: whether an earlier run of the same command left a journal there.
        """
        ours, others = [], []
        files = [folder / name for name in self.files if os.path.lexists(folder / name)]
        (ours if has_journal or _is_front(folder / self.result) else others).extend(files)
        for model in sorted(folder.glob("*")):
            if re.fullmatch(self.models, model.name):
                saved = None if model.is_symlink() else saved_files(model)
                there = [path for path in model.rglob("*") if not path.is_dir()] if saved else [model]
                ours += [path for path in there if path in (saved or ())]
                others += [path for path in there if path not in (saved or ())]
        return ours, others


def one_model(command: str, name: str) -> Outputs:
    """Return the outputs of a command that writes the folder of one model, and nothing else."""
    return Outputs(command, name, models=re.escape(name))


def refuse_other_commands(folder: Path, command: str) -> None:
    """Raise ``UserError`` where another command wrote the folder: two results would be taken for one."""
    wrote = {
        "sweep": (folder / ".front.csv.journal").exists() or _is_front(folder / "front.csv"),
        "run": any(folder.glob(".eps-*.journal")),
        "reproduce": (folder / "reproduction.json").exists(),
    }
    for other, is_there in wrote.items():
        if is_there and other != command:
            raise UserError(
                f"{folder} holds what `unlearn-ext {other}` wrote, and each command needs a folder of its own: choose "
                "another folder."
            )


def refuse_foreign(folder: Path, others: Sequence[Path]) -> None:
    """Raise ``UserError`` where files that no run wrote have the names of files that one would write."""
    if others:
        named = ", ".join(str(path.relative_to(folder)) for path in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(
            f"{folder} holds {named}{more}, which no run wrote and this one would replace: move that away or "
            "choose another folder."
        )


def _is_front(path: Path) -> bool:
    try:
        return len(ParetoFront.from_csv(path)) > 0
    except UserError:
        return False
