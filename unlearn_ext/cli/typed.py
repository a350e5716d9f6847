"""What was typed for a run, kept in its folder, so that the run can be judged from anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ..errors import UserError
from ..writing import write_atomically
from .options import Sources

FILE = "sources.json"
_FOLDERS = ("data_dir", "dataset", "forget", "retain", "model")


def keep(sources: Sources, run: Path) -> None:
    """Write it beside the models of a run; folders so that they are found from anywhere."""
    given = {name: Path(place) for name in _FOLDERS if (place := getattr(sources, name))}
    found = {name: place.resolve() for name, place in given.items() if place.exists()}
    text = json.dumps(asdict(sources) | found, indent=2, default=str, ensure_ascii=False)
    write_atomically(run / FILE, f"{text}\n".encode())


def kept(run: Path) -> Sources:
    """What :func:`keep` wrote.

    Raises:
        UserError: nothing was kept there.
    """
    try:
        return Sources(**json.loads((run / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{run} does not say of what images and model it is; a run of `unlearn-ext sweep` says so in {FILE}, and "
            "from Python unlearn_ext.metrics.evaluate is told."
        ) from error
