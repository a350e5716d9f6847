"""Write one model of a run in the layout of the checkpoint file that the run began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .._utils.file_hash import file_sha256
from .._utils.hub import expanded
from ..errors import UserError, require
from .inputs import recognised
from .sources_file import kept

if TYPE_CHECKING:
    from .options import Sources

__all__ = ["Original"]


class Original:
    """The checkpoint file that a run began with.

    Args:
        run: folder of the run.

    Attributes:
        name: file name for a model in this layout.

    Raises:
        UserError: the run began with no file, or a file that the model was loaded from is gone or was changed.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._sources = run, _sources(run)
        self._path = Path(expanded(str(self._sources.model)))
        self.name = f"{self._path.stem}.safetensors"

    def save(self, point: str, folder: Path) -> None:
        """Write a model of the run to a folder: all weights of the file, with those of E replaced by the model's."""
        import torch

        from .. import models

        model = models.load(self._sources.family, self._run / point)
        weights = models.doors.write_back(model, self._path, self._sources.model_config)
        folder.mkdir(parents=True, exist_ok=True)
        # The format has no weights that share memory.
        apart = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}
        require("safetensors.torch", "images").save_file(apart, folder / self.name)


def _sources(run: Path) -> Sources:
    """Return the options of a run that began with a checkpoint file.

    Raises:
        UserError: it began with none, or one of the files that the model was loaded from is gone or was changed.
    """
    from ..models.doors import companions

    sources = recognised(kept(run))
    path = Path(expanded(str(sources.model)))
    if not path.is_absolute() or path.is_dir():  # a hub id, a folder, or no model: existing files have absolute paths
        raise UserError(f"{run} began with no checkpoint file, so there is no original format: leave out --format.")
    if not path.is_file():
        raise UserError(
            f"the checkpoint {path} is gone, and its other weights are needed: put it back, or give --format library."
        )
    recorded = _recorded(run)
    for file in (path, *companions(path, sources.model_config)):
        if file.name in recorded and recorded[file.name] != file_sha256(file):
            raise UserError(
                f"the checkpoint {path} is needed again, but {file.name} was changed since {run} was made: put the "
                "former file back, or give --format library."
            )
    return sources


def _recorded(run: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that the run began with, as the evidence has them; empty without evidence."""
    try:
        files = json.loads((run / "evidence.json").read_text(encoding="utf-8"))["models"]["before"]["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}
