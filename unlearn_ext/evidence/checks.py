"""Verify a run: compare its evidence with the files, and compute the numbers again where everything is at hand."""

from __future__ import annotations

import importlib.resources
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._utils.file_hash import file_sha256
from ..errors import UserError, require
from . import machine, record, tables
from .files import AtHand, Load
from .hashing import digest_of
from .lines import CONTRADICTS, HOLDS, NOT_AT_HAND, NOTE, Line
from .numbers import numbers
from .page import render
from .places import earlier_of
from .signing import is_signed_by

__all__ = ["verify"]


def verify(
    run: str | Path,
    *,
    model_before: Path | None = None,
    public_key: Path | None = None,
    load: Load | None = None,
) -> Iterator[Line]:
    """Yield a line for each thing that the evidence of a run states and that can be checked.

    Args:
        run: folder of the run; it may have been moved.
        model_before: folder or file of the model before, if it is not where it was.
        public_key: PEM file of an Ed25519 key, to check the signature.
        load: returns the images of built-in sets and of data sets, which are no files.

    Raises:
        UserError: there is no evidence to verify, or the public key cannot be used.
    """
    run = Path(run)
    if model_before is not None and not model_before.exists():
        raise UserError(f"there is no folder or file {model_before}.")
    if not (run / record.EVIDENCE).is_file():
        record.read(run)  # raises
    encoded = (run / record.EVIDENCE).read_bytes()
    yield from _signature(run, encoded, public_key)
    try:
        content = record.read(run)
        yield from _schema(content)
        yield from _itself(content, encoded)
        yield from _tables(run, content)
        yield from _page(run, content)
        yield from _after(run, content)
        at_hand = AtHand(run, content, load)
        yield from at_hand.images()
        yield from at_hand.models(model_before)
        yield from numbers(run, content, at_hand)
    except (KeyError, TypeError, AttributeError) as error:  # only if it does not follow the schema
        yield Line(CONTRADICTS, f"{record.EVIDENCE} has no valid field: {type(error).__name__}: {error}.")
    except UserError as error:
        yield Line(CONTRADICTS, str(error))


def _signature(run: Path, encoded: bytes, public_key: Path | None) -> Iterator[Line]:
    path = run / record.SIGNATURE
    if public_key is None:
        if path.exists():
            yield Line(NOTE, f"{record.EVIDENCE} is signed; give --public-key to check {record.SIGNATURE}.")
    elif not path.is_file():
        yield Line(CONTRADICTS, f"there is no signature {record.SIGNATURE} to check.")
    elif is_signed_by(public_key, path.read_bytes(), encoded):
        yield Line(HOLDS, f"{record.EVIDENCE} was signed with the key that belongs to {public_key}.")
    else:
        yield Line(CONTRADICTS, f"{record.SIGNATURE} is no signature of {record.EVIDENCE} by the key of {public_key}.")


def _schema(content: Mapping[str, Any]) -> Iterator[Line]:
    try:
        jsonschema = require("jsonschema", "evidence")
    except UserError as error:
        yield Line(NOTE, f"{record.EVIDENCE} was not compared with its schema: {error}")
        return
    schema = json.loads(importlib.resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8"))
    broken = next(jsonschema.Draft202012Validator(schema).iter_errors(content), None)
    if broken:
        where = textwrap.shorten(f"{broken.json_path}: {broken.message}", 240, placeholder=" …")
        yield Line(CONTRADICTS, f"{record.EVIDENCE} does not follow its schema: {where}.")
    else:
        yield Line(HOLDS, f"{record.EVIDENCE} follows its schema.")


def _itself(content: dict[str, Any], encoded: bytes) -> Iterator[Line]:
    found = digest_of(content)
    if found != content["sha256"]:
        yield Line(
            CONTRADICTS,
            f"{record.EVIDENCE} was changed: its digest is {found}, and it states {content['sha256']}.",
        )
    elif record.text_of(content).encode("utf-8", "backslashreplace") != encoded:
        yield Line(CONTRADICTS, f"{record.EVIDENCE} was changed: the same content, but not as it was written.")
    else:
        yield Line(HOLDS, f"{record.EVIDENCE} has its digest {found}.")


def _tables(run: Path, content: Mapping[str, Any]) -> Iterator[Line]:
    """Compare the bytes of the tables with their SHA-256, and what the evidence states with what they contain."""
    recorded = content["tables"]
    there = {name: file_sha256(run / name) for name in recorded if (run / name).is_file()}
    same = [name for name, sha256 in there.items() if sha256 == recorded[name]]
    if same:
        yield Line(HOLDS, f"tables, unchanged: {', '.join(same)}.")
    for name in sorted(there.keys() - set(same)):
        yield Line(CONTRADICTS, f"{name} was changed.")
    for name in sorted(recorded.keys() - there.keys()):
        yield Line(NOT_AT_HAND, f"{name} is not in the folder.")
    for name in tables.TABLES:
        if name not in recorded and (run / name).exists():
            yield Line(NOTE, f"{name} is not in the evidence: it was written later.")
    if len(same) == len(recorded):
        source = record.from_tables(run)
        stated = {**content, "models": [_without_files(model) for model in content["models"]["after"]]}
        for part in ("command", "pictures", "images", "requests", "models", "audits"):
            if source[part] != stated[part]:
                yield Line(CONTRADICTS, f"{record.EVIDENCE} states other {part} than the tables contain.")


def _without_files(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in ("sha256", "files")}


def _page(run: Path, content: dict[str, Any]) -> Iterator[Line]:
    page, version = run / record.PAGE, content["made_with"]["unlearn_ext"]
    if not page.is_file():
        yield Line(NOT_AT_HAND, f"{record.PAGE} is not in the folder.")
    elif version != machine.conditions("cpu")["unlearn_ext"]:
        yield Line(NOTE, f"{record.PAGE} was not compared: it is that of version {version}.")
    else:
        try:
            is_same = render(run, content).encode("utf-8", "backslashreplace") == page.read_bytes()
        except UserError as error:
            yield Line(NOTE, f"{record.PAGE} was not compared: {error}")
            return
        if is_same:
            yield Line(HOLDS, f"{record.PAGE} shows this {record.EVIDENCE}.")
        else:
            yield Line(CONTRADICTS, f"{record.PAGE} is not the page of this {record.EVIDENCE}.")


def _after(run: Path, content: Mapping[str, Any]) -> Iterator[Line]:
    """Compare the evidence of the earlier run, which this one continues, with the digest recorded here."""
    if not (after := content["after"]):
        return
    earlier = earlier_of(run)
    if earlier is None or not (earlier / record.EVIDENCE).is_file():
        yield Line(NOT_AT_HAND, f"the evidence of the earlier run {after['run']}.")
    elif after["evidence_sha256"] is None:
        yield Line(NOTE, f"the evidence of the earlier run {after['run']} was written after this one.")
    elif digest_of(record.read(earlier)) == after["evidence_sha256"]:
        yield Line(HOLDS, f"the evidence of the earlier run {after['run']} is as it was.")
    else:
        yield Line(NOTE, f"the evidence of the earlier run {after['run']} has been written again since; verify it too.")
