"""Find the images and the model before again, from the options that the run's folder keeps in ``sources.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._utils.cache import cache_folder
from .._utils.file_hash import file_sha256
from .._utils.hub import expanded
from ..errors import UserError, require
from .tables import SOURCES, metrics_of

__all__ = ["earlier_of", "find_image", "has_files", "model_place", "roots", "sources_of"]

_FOLDERS = ("data_dir", "forget", "retain")  # options whose images are files


def sources_of(run: Path) -> dict[str, Any]:
    """Return the content of ``sources.json``; empty if it is absent or broken."""
    try:
        sources = json.loads((run / SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sources if isinstance(sources, dict) else {}


def has_files(sources: Mapping[str, Any]) -> bool:
    """Return whether the run's images are files; those of built-in sets and of data sets are only pixels."""
    return any(sources.get(name) for name in _FOLDERS)


def roots(run: Path) -> list[Path]:
    """Return the folders that were given for images, for a run and for those that it continues.

    An option's value is a folder, or ``NAME=`` and a folder.
    """
    values = [sources_of(folder).get(name) for folder in _chain(run) for name in _FOLDERS]
    texts = [str(text) for value in values for text in (value if isinstance(value, list) else [value]) if text]
    given = [Path(part) for text in texts for part in (text, text.partition("=")[2]) if part]
    return [place.expanduser().resolve() for place in dict.fromkeys(given)]


def earlier_of(run: Path) -> Path | None:
    """Return the folder of the run that a run continues; None if there is none, or it is not at hand."""
    try:
        after = metrics_of(run).get("after")
    except UserError:
        return None
    places = [Path(after), run.parent / Path(after).name] if after else []
    return next((place for place in places if place.is_dir()), None)


def _chain(run: Path) -> list[Path]:
    """Return a run and the runs that it continues."""
    folders = [run]
    while (earlier := earlier_of(folders[-1])) and earlier not in folders:
        folders.append(earlier)
    return folders


def find_image(file: str, sha256: str, folders: Sequence[Path]) -> tuple[Path | None, bool]:
    """Return the path of an image, and whether its bytes are those recorded; (None, False) if it is not at hand.

    The file was recorded as typed, which may be relative to a working directory that is no longer known. Its end is
    looked for below each folder; a file with the right bytes is the image, wherever it is. A file with other bytes is
    the changed image only if it is where the image must be.

    Args:
        file: path as recorded: the folder as typed, and the path inside it.
        sha256: recorded SHA-256 of its bytes.
        folders: the folders that were given, as absolute paths.
    """
    changed = None
    for place, is_exact in _candidates(file, folders):
        if place.is_file():
            if file_sha256(place) == sha256:
                return place, True
            changed = changed or (place if is_exact else None)
    return changed, False


def model_place(named: str, sources: Mapping[str, Any]) -> Path | None:
    """Return the folder or file of the model before; None if it is not at hand.

    Args:
        named: name of a model in the cache, for runs without ``--model``.
        sources: options of the run.
    """
    if not sources.get("model"):
        place = cache_folder() / named
    elif not (place := Path(expanded(str(sources["model"])))).exists():
        place = _from_hub(str(sources["model"])) or place
    return place if place.exists() else None


def _candidates(file: str, folders: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield the paths where an image may be, and whether it must be there."""
    for name in dict.fromkeys((file, _with_bytes(file))):
        path = Path(name)
        parts = [part for part in path.parts if part not in ("..", ".", "~")]
        yield path, path.is_absolute() or any(folder in path.resolve().parents for folder in folders)
        for folder in folders:
            for start in range(len(parts)):
                is_exact = start > 0 and tuple(parts[:start]) == folder.parts[-start:]
                yield folder.joinpath(*parts[start:]), is_exact


def _with_bytes(file: str) -> str:
    r"""Return a name with the bytes that are not UTF-8; tables spell them as ``\udce9``."""
    return re.sub(r"\\ud(c[89a-f][0-9a-f])", lambda found: chr(0xD000 | int(found[1], 16)), file)


def _from_hub(name: str) -> Path | None:
    """Return the folder of a hub id in the library's cache; None if it is not there. The network is not used."""
    try:
        return Path(require("huggingface_hub", "images").snapshot_download(name, local_files_only=True))
    except (UserError, OSError, ValueError):
        return None
