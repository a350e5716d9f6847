"""Write one model of a run in the layout of the checkpoint file that the run began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .._utils.file_hash import file_sha256
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
        UserError: the run began with no file, or the file is gone or was changed.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._sources = run, _sources(run)
        self._path = Path(str(self._sources.model))
        self.name = f"{self._path.stem}.safetensors"

    def save(self, point: str, folder: Path) -> None:
        """Write a model of the run to a folder: all weights of the file, with those of E replaced by the model's."""
        from .. import models

        model = models.load(self._sources.family, self._run / point)
        weights = models.doors.write_back(model, self._path, self._sources.model_config)
        folder.mkdir(parents=True, exist_ok=True)
        apart = {
            name: weight.contiguous().clone() for name, weight in weights.items()
        }  # the format has no tied weights
        require("safetensors.torch", "images").save_file(apart, folder / self.name)


def _sources(run: Path) -> Sources:
    """Return the options of a run that began with a checkpoint file.

    Raises:
        UserError: it began with none, or the file is gone or was changed.
    """
    sources = recognised(kept(run))
    if sources.model is None or not Path(sources.model).suffix or Path(sources.model).is_dir():
        raise UserError(f"{run} began with no checkpoint file, so there is no original format: leave out --format.")
    if not Path(sources.model).is_file():
        raise UserError(
            f"the checkpoint {sources.model} is gone, and its other weights are needed: put it back, or give "
            "--format library."
        )
    recorded = _recorded(run).get(Path(sources.model).name)
    if recorded and recorded != file_sha256(Path(sources.model)):
        raise UserError(
            f"the checkpoint {sources.model} was changed since {run} was made, and its other weights are needed: put "
            "the former file back, or give --format library."
        )
    return sources


def _recorded(run: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that the run began with, as the evidence has them; empty without evidence."""
    try:
        files = json.loads((run / "evidence.json").read_text(encoding="utf-8"))["models"]["before"]["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}
