"""Findings that are kept in the folder of a run, so that an interrupted audit computes none of them twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .._utils.atomic_io import write_text
from ..errors import UserError
from .protocol import Finding

__all__ = ["FILE", "Cache"]

FILE = ".audit.journal"


class Cache:
    """Lists of findings by a key of all that they depend on.

    Args:
        run: folder of the run.

    Raises:
        UserError: the file of an earlier audit cannot be read.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / FILE
        self._kept: dict[str, list[Finding]] = {}
        if self._path.exists():
            try:
                kept = json.loads(self._path.read_text(encoding="utf-8"))
                self._kept = {key: [Finding(**finding) for finding in findings] for key, findings in kept.items()}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{self._path} cannot be read ({error}): delete it to audit again.") from error

    def recall(self, identity: Any, compute: Callable[[], list[Finding]]) -> list[Finding]:
        """Return the findings of an identity; compute and store them if there are none.

        Args:
            identity: all that the findings depend on, as numbers, strings, lists and dicts.
            compute: function that returns the findings.
        """
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self._kept:
            self._kept[key] = compute()
            text = json.dumps({key: list(map(asdict, found)) for key, found in self._kept.items()}, ensure_ascii=False)
            write_text(self._path, f"{text}\n")
        return self._kept[key]
