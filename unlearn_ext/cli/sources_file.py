"""The typed options of a run, saved in its folder, so that the run can be evaluated from any working directory."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .._utils.atomic_io import write_text
from .._utils.hub import expanded
from ..errors import UserError
from .asked import folders_to_forget
from .options import Sources

__all__ = ["FILE", "keep", "kept"]

FILE = "sources.json"
_PLACES = ("data_dir", "dataset", "retain", "model", "model_config")


def keep(sources: Sources, run: Path) -> None:
    """Save the options in a run's folder, with existing files and folders as absolute paths.

    Links are not resolved: a file's name and folder show what belongs to it, and in the cache of the Hugging Face hub
    the files that links lead to have other names.
    """
    given = {name: Path(expanded(place)) for name in _PLACES if (place := getattr(sources, name))}
    found: dict[str, Any] = {name: place.absolute() for name, place in given.items() if place.exists()}
    folders = folders_to_forget(sources).items()
    found["forget"] = [f"{name}={Path(expanded(folder)).absolute()}" for name, folder in folders]
    text = json.dumps(asdict(sources) | found, indent=2, default=str, ensure_ascii=False)
    write_text(run / FILE, f"{text}\n")


def kept(run: Path) -> Sources:
    """Return the options that :func:`keep` saved.

    Raises:
        UserError: the run's folder holds no valid options.
    """
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict) and not isinstance(found.get("forget"), list):  # of an earlier version
            found["forget"] = [found["forget"]] if found.get("forget") else []
        sources = Sources(**found)
        for field in fields(Sources):
            _check(field.name, getattr(sources, field.name), getattr(Sources(), field.name))
        return sources
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{run} does not name its images and its model: {FILE}, which `unlearn-ext sweep` writes, cannot be read. "
            "From Python, pass the model and the images to unlearn_ext.metrics.evaluate."
        ) from error


def _check(name: str, value: Any, default: Any) -> None:
    """Raise ``TypeError`` if a value has a type that the command line cannot produce."""
    kinds = (str, type(None)) if default is None else type(default)
    if not isinstance(value, kinds) or (isinstance(value, list) and not all(isinstance(part, str) for part in value)):
        raise TypeError(f"{name} is {value!r}")
