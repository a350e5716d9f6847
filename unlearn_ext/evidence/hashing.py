"""SHA-256 of folders and JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .._utils.file_hash import file_sha256

__all__ = ["canonical", "digest_of", "files_sha256", "folder_files"]


def folder_files(place: Path, companions: Iterable[Path] = ()) -> dict[str, str]:
    """Return the SHA-256 of each file of a model, by its path in the folder with slashes; of a file, by its name.

    Hidden files and folders are left out: they hold notes of tools, and no library loads weights from them.

    Args:
        place: folder or file.
        companions: the files that a file is loaded with, such as its configuration.
    """
    if place.is_file():
        return {file.name: file_sha256(file) for file in (place, *companions)}
    files = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
    return {
        file.as_posix(): file_sha256(place / file) for file in files if not any(p.startswith(".") for p in file.parts)
    }


def files_sha256(files: Mapping[str, str]) -> str:
    """Return one digest for a model: the SHA-256 of the canonical JSON of its files' names and SHA-256."""
    return hashlib.sha256(canonical(dict(files))).hexdigest()


def canonical(value: Any) -> bytes:
    """Return JSON with sorted keys, without spaces and in ASCII, so that equal values have equal bytes.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def digest_of(evidence: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of the evidence, without its own field ``sha256``."""
    return hashlib.sha256(canonical({k: v for k, v in evidence.items() if k != "sha256"})).hexdigest()
