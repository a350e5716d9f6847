"""Write ``evidence.json``, ``evidence.html`` and the signature into a run's folder.

Everything in the evidence comes from the tables of the run's folder, from the files themselves, and from the labels
that were typed. So it can be written again, and :mod:`.checks` can compare each part with its source.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .._utils.atomic_io import write_atomically, write_text
from .._utils.file_hash import file_sha256
from ..errors import UserError
from ..unlearning.outputs import EVIDENCE, PAGE, SIGNATURE
from . import machine, tables
from .hashing import canonical, digest_of, files_sha256, folder_files
from .page import render
from .promises import NOT_PROMISED, PURPOSE

__all__ = [
    "EVIDENCE", "FORMAT", "PAGE", "SIGNATURE", "Before", "Labels", "Sign", "from_tables", "read", "refresh", "text_of",
    "write_evidence",
]  # fmt: skip

FORMAT = "unlearn_ext evidence 1"
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Labels:
    """What the evidence says about a request apart from what the program knows. None: as before, else the default.

    Attributes:
        request_id: id of the request. By default a UUID (version 5) of the run: the same model, images, ε and settings
            give the same id, on every machine and after a resumed run, and it contains nothing about a person.
        operator: who ran the program; by default empty. The name of the system's user is never read.
    """

    request_id: str | None = None
    operator: str | None = None


@dataclass(frozen=True)
class Before:
    """The model before unlearning.

    Attributes:
        named: how it was named: as typed, or the name of a small model in the cache.
        place: its folder or file.
        companions: the files that a file is loaded with, such as its configuration.
    """

    named: str
    place: Path
    companions: Sequence[Path] = ()


def write_evidence(
    run: str | Path, before: Before | None, labels: Labels | None = None, sign: Sign | None = None
) -> Path:
    """Write the evidence of a finished run, with the SHA-256 of all its models; return the path of ``evidence.json``.

    Labels that are not given are those of earlier evidence in the folder.

    Args:
        run: folder of the run.
        before: the model before unlearning; None if it is the one in the folder's earlier evidence, or unknown.
        labels: the labels of the request.
        sign: function that signs the file's bytes; see :mod:`.signing`.

    Raises:
        UserError: a table of the run cannot be read, or a file cannot be written.
    """
    run, labels = Path(run), labels or Labels()
    earlier = read(run) if (run / EVIDENCE).exists() else None
    metrics = tables.metrics_of(run)
    known = from_tables(run)
    now = machine.conditions(str(metrics.get("device", "cpu")))
    made_with = machine.merged(now, earlier["made_with"]) if earlier else now
    if before:
        model: dict[str, Any] | None = {"named": before.named, **_hashed(before.place, before.companions)}
    else:
        model = earlier["models"]["before"] if earlier else None
    models = {"before": model, "after": [{**point, **_hashed(run / point["name"])} for point in known["models"]]}
    request = {
        "id": _first(labels.request_id, earlier and earlier["request"]["id"], _default_id(known, model)),
        "operator": _first(labels.operator, earlier and earlier["request"]["operator"], ""),
        "date": _first(metrics.get("finished"), earlier and earlier["request"]["date"], _now()),
        "purpose": PURPOSE,
    }
    content = {
        "format": FORMAT, "request": request, **known, "models": models, "made_with": made_with,
        "not_promised": list(NOT_PROMISED),
    }  # fmt: skip
    return _save(run, content, sign)


def refresh(run: str | Path, labels: Labels | None = None, sign: Sign | None = None) -> Path | None:
    """Write the evidence again with the present ``audit.csv`` and labels; return its path, or None if there is none.

    All other parts stay as they are, so that a model or a table that was changed meanwhile is still found.

    Args:
        run: folder of the run.
        labels: labels to replace.
        sign: function that signs the file's bytes. Without it, an earlier signature is removed, with a warning.

    Raises:
        UserError: the evidence or ``audit.csv`` cannot be read, or a file cannot be written.
    """
    run, labels = Path(run), labels or Labels()
    if run.is_dir() and not (run / EVIDENCE).exists():
        return None
    content = read(run)
    given = {"id": labels.request_id, "operator": labels.operator}
    content["request"] |= {name: value for name, value in given.items() if value is not None}
    content["audits"] = tables.rows_of(run, tables.AUDIT)
    if (run / tables.AUDIT).exists():
        content["tables"][tables.AUDIT] = file_sha256(run / tables.AUDIT)
    return _save(run, content, sign)


def read(run: Path) -> dict[str, Any]:
    """Return the content of ``evidence.json``.

    Raises:
        UserError: the file is absent, or is not evidence of this format.
    """
    path = run / EVIDENCE
    if not run.is_dir():
        raise UserError(f"there is no run folder at {run}.")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{run} has no {EVIDENCE}: `unlearn-ext evidence {run}` writes it for a finished run."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not evidence that this version can read: its format is not {FORMAT!r}.")
    return content


def text_of(content: Mapping[str, Any]) -> str:
    """Return the text of ``evidence.json``: every file with this content has these characters."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_tables(run: Path) -> dict[str, Any]:
    """Return the parts of the evidence that come from the tables of a run's folder.

    Raises:
        UserError: a table cannot be read.
    """
    metrics = tables.metrics_of(run)
    asked = metrics.get("requests") or {}
    requests = [
        {**row, "asked": str(asked.get(row["request"], {}).get("epsilon_given", "")) or None}
        for row in tables.rows_of(run, tables.REQUESTS)
    ]
    command = {
        "name": metrics.get("command", "sweep"),
        "argv": metrics.get("argv"),
        **{name: metrics.get(name) for name in ("started", "finished", "family", "dataset", "task", "seed")},
        "f1_unmodified": metrics.get("f1_original"),
        "variance": (metrics.get("units") or {}).get("variance"),
        "settings": metrics.get("settings") or {},
    }
    return {
        "command": command,
        "after": _after(metrics.get("after")),
        "pictures": metrics.get("pictures"),
        "images": tables.rows_of(run, tables.IMAGES),
        "models": tables.models_of(run),
        "requests": requests,
        "audits": tables.rows_of(run, tables.AUDIT),
        "tables": {name: file_sha256(run / name) for name in tables.TABLES if (run / name).is_file()},
    }


def _after(earlier: str | None) -> dict[str, Any] | None:
    """Return the name of the earlier run that this one continues, and the digest of its evidence."""
    if not earlier:
        return None
    try:
        return {"run": Path(earlier).name, "evidence_sha256": read(Path(earlier)).get("sha256")}
    except UserError:
        return {"run": Path(earlier).name, "evidence_sha256": None}


def _hashed(place: Path, companions: Sequence[Path] = ()) -> dict[str, Any]:
    files = folder_files(place, companions)
    return {"sha256": files_sha256(files), "files": files}


def _default_id(known: Mapping[str, Any], model: Mapping[str, Any] | None) -> str:
    settings = {name: value for name, value in known["command"]["settings"].items() if name != "memory"}
    images = [[row["set"], row["request"], row["sha256"], row["used_as"]] for row in known["images"]]
    asked = sorted({(row["request"], row["epsilon"] or 0.0) for row in known["requests"] if row["held"] == "trained"})
    targets = [point["epsilon"] for point in known["models"] if point["role"] == "epsilon"]
    named = [known["command"][name] for name in ("family", "dataset", "task")]
    run = [model and model["sha256"], images, asked, targets, named, settings]
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "unlearn_ext run " + canonical(run).decode()))


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _save(run: Path, content: dict[str, Any], sign: Sign | None) -> Path:
    """Write the three files; an earlier signature is removed first, because it does not fit the new file."""
    content = {**content, "sha256": digest_of(content)}
    signature, text = run / SIGNATURE, text_of(content)
    encoded = text.encode("utf-8", "backslashreplace")  # as write_text does
    stale = signature.exists() and not ((run / EVIDENCE).exists() and (run / EVIDENCE).read_bytes() == encoded)
    if stale:
        signature.unlink()
        if sign is None:
            warnings.warn(
                f"{EVIDENCE} has changed, so its signature was removed: sign it again with `unlearn-ext evidence {run} "
                "--sign KEY`.",
                stacklevel=3,
            )
    write_text(run / EVIDENCE, text)
    try:
        write_text(run / PAGE, render(run, content))
    except UserError as error:
        (run / PAGE).unlink(missing_ok=True)  # it would show earlier evidence
        warnings.warn(f"{PAGE} was not written: {error}", stacklevel=3)
    if sign is not None:
        write_atomically(signature, sign(encoded))
    return run / EVIDENCE
