"""What was typed for a run, kept in its folder, so that the run can be judged from anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .._utils.atomic_io import write_text
from ..errors import UserError
from .options import Sources

__all__ = ["FILE", "keep", "kept"]

FILE = "sources.json"
_FOLDERS = ("data_dir", "dataset", "forget", "retain", "model")


def keep(sources: Sources, run: Path) -> None:
    """Write it beside the models of a run; folders so that they are found from anywhere."""
    given = {name: Path(place) for name in _FOLDERS if (place := getattr(sources, name))}
    found = {name: place.resolve() for name, place in given.items() if place.exists()}
    text = json.dumps(asdict(sources) | found, indent=2, default=str, ensure_ascii=False)
    write_text(run / FILE, f"{text}\n")


def kept(run: Path) -> Sources:
    """What :func:`keep` wrote.

    Raises:
        UserError: nothing was kept there.
    """
    try:
        sources = Sources(**json.loads((run / FILE).read_text(encoding="utf-8")))
        for field in fields(Sources):
            _check(field.name, getattr(sources, field.name), getattr(Sources(), field.name))
        return sources
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{run} does not say of what images and model it is; a run of `unlearn-ext sweep` says so in {FILE}. "
            "From Python, pass the model and the images to unlearn_ext.metrics.evaluate."
        ) from error


def _check(name: str, value: Any, default: Any) -> None:
    """Raises ``TypeError`` where a value is of no kind that could have been typed."""
    kinds = (str, type(None)) if default is None else type(default)
    if not isinstance(value, kinds) or (isinstance(value, list) and not all(isinstance(part, str) for part in value)):
        raise TypeError(f"{name} is {value!r}")
