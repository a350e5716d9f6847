"""Verify a run: compare its evidence with the files, and compute the numbers again where everything is at hand."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import models
from ..data import ForgetRetain
from ..data.decode import decode
from ..errors import UserError, require
from ..models import I2IModel
from . import machine, record, tables
from .hashing import digest_of, file_sha256, folder_files
from .page import render
from .places import earlier_of, find_image, has_files, model_place, roots, sources_of
from .recompute import Measured, Meter, Sets
from .signing import is_signed_by

__all__ = ["CONTRADICTS", "HOLDS", "NOTE", "NOT_AT_HAND", "Line", "verify"]

HOLDS, CONTRADICTS, NOT_AT_HAND, NOTE = "holds", "contradicts", "not at hand", "note"
NEAR = 1e-4  # relative tolerance of a number that is computed again; on the same machine it has the same bits
NEAR_ELSEWHERE = 1e-2  # on another kind of device, or in mixed precision, where products have 10 to 13 bits or fewer
_TINY = 1e-7  # absolute tolerance
_SHOWN = 10  # files named in one line

Load = Callable[[], ForgetRetain]


@dataclass(frozen=True)
class Line:
    """One result of the verification.

    Attributes:
        status: ``HOLDS``, ``CONTRADICTS``, ``NOT_AT_HAND`` or ``NOTE``.
        text: what was compared, and what was found.
    """

    status: str
    text: str


def verify(
    run: str | Path,
    *,
    model_before: Path | None = None,
    public_key: Path | None = None,
    load: Load | None = None,
    device: torch.device | None = None,
) -> Iterator[Line]:
    """Yield a line for each thing that the evidence of a run states and that can be checked.

    Args:
        run: folder of the run; it may have been moved.
        model_before: folder of the model before, if it is not where it was.
        public_key: PEM file of an Ed25519 key, to check the signature.
        load: returns the images of built-in sets and of data sets, which are no files.
        device: device to compute on; the CPU by default.

    Raises:
        UserError: there is no evidence to verify, or the public key cannot be used.
    """
    run = Path(run)
    if model_before is not None and not model_before.exists():
        raise UserError(f"there is no folder {model_before}.")
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
        checked = _Checked(run, content, load)
        yield from checked.images()
        yield from checked.models(model_before)
        yield from checked.numbers(device or torch.device("cpu"))
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
    for error in jsonschema.Draft202012Validator(schema).iter_errors(content):
        yield Line(CONTRADICTS, f"{record.EVIDENCE} does not follow its schema: {error.json_path}: {error.message}")
        return
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


class _Checked:
    """The checks of images and models, whose results decide which numbers can be computed again.

    Args:
        run: folder of the run.
        content: its evidence.
        load: see :func:`verify`.
    """

    def __init__(self, run: Path, content: dict[str, Any], load: Load | None) -> None:
        self._run, self._content, self._load = run, content, load
        self._sources = sources_of(run)
        self._found: dict[int, Path | torch.Tensor] = {}  # by position in the list of images
        self._before: Path | None = None
        self._intact: set[str] = set()  # models whose files are unchanged

    def images(self) -> Iterator[Line]:
        """Compare every image with its SHA-256."""
        rows = self._content["images"]
        if not rows:
            yield Line(NOTE, "the evidence lists no images: the run was made by an earlier version.")
            return
        find = self._finder()
        groups: dict[tuple[str, str], list[int]] = {}
        for position, row in enumerate(rows):
            groups.setdefault((row["set"], row["request"]), []).append(position)
        for (side, request), positions in groups.items():
            name = f"images to {side}" + (f", request {request}" if request else "")
            changed, missing = [], []
            for position in positions:
                row = rows[position]
                found, is_same = find(row)
                if found is None:
                    (missing if is_same is None else changed).append(row["file"])
                else:
                    self._found[position] = found
            good = len(positions) - len(changed) - len(missing)
            if good:
                yield Line(HOLDS, f"{name}: {good} of {len(positions)} are at hand and unchanged.")
            for file in changed:
                yield Line(CONTRADICTS, f"{name}: {file} was changed.")
            if missing:
                yield Line(NOT_AT_HAND, f"{name}: {len(missing)} of {len(positions)}: {_some(missing)}.")

    def models(self, model_before: Path | None) -> Iterator[Line]:
        """Compare every file of the models with its SHA-256."""
        before = self._content["models"]["before"]
        if before is None:
            yield Line(NOTE, "the evidence does not say what the model before was.")
        else:
            place = model_before or model_place(before["named"], self._sources)
            lines = list(_files(f"model before, {before['named']}", place, before["files"]))
            self._before = place if [line.status for line in lines] == [HOLDS] else None
            yield from lines
        for model in self._content["models"]["after"]:
            place = self._run / model["name"]
            lines = list(_files(f"model {model['name']}", place if place.is_dir() else None, model["files"]))
            if [line.status for line in lines] == [HOLDS]:
                self._intact.add(model["name"])
            yield from lines

    def numbers(self, device: torch.device) -> Iterator[Line]:
        """Compute f1, f2 and the worst image of each model again."""
        command = self._content["command"]
        now, then = machine.conditions(str(device)), self._content["made_with"]
        differing = machine.differences(then, now)
        if differing:
            yield Line(NOTE, f"the machine or its versions differ: {'; '.join(differing)}.")
        if self._before is None:
            yield Line(NOT_AT_HAND, "f1 and f2 were not computed again, without the model before as it was.")
            return
        before = _loaded(str(command["family"]), self._before, device)
        sets = self._sets(before)
        if sets.retain is None:
            yield Line(NOT_AT_HAND, "f1 and f2 were not computed again, without all images to retain as they were.")
            return
        for request, images in sets.forget.items():
            if images is None:
                text = f"f1 of request {request} was not computed again, without all its images as they were."
                yield Line(NOT_AT_HAND, text)
        meter = Meter(before, sets, command, self._sources.get("augment") or [])
        elsewhere = then["device"].partition(":")[0] != device.type or command["settings"].get("precision") != "float32"
        compare = _Comparison(NEAR_ELSEWHERE if elsewhere else NEAR, bool(differing))
        first = next(iter(sets.forget), "")
        rows = self._content["requests"]
        unmodified = {row["request"]: row["f1_unmodified"] for row in rows} or {first: command["f1_unmodified"]}
        of_before = [(f"f1 of {name}", unmodified.get(name), f1) for name, f1 in meter.unmodified().items()]
        if of_before:
            yield compare("model before", of_before)
        for model in self._content["models"]["after"]:
            if model["name"] not in self._intact:
                continue
            measured = meter.measure(_loaded(str(command["family"]), self._run / model["name"], device))
            mine = {row["request"]: row for row in rows if row["point"] == model["name"]}
            yield compare(f"model {model['name']}", list(_pairs(model, mine, measured, first)))

    def _finder(self) -> Callable[[Mapping[str, Any]], tuple[Path | torch.Tensor | None, bool | None]]:
        """Return a function that finds an image.

        Its result is the file or the pixels, or None and whether the image is changed (False) or not at hand (None).
        """
        if has_files(self._sources):
            folders = roots(self._run)

            def find_file(row: Mapping[str, Any]) -> tuple[Path | None, bool | None]:
                if not row["sha256"]:  # it could not be read
                    return None, None
                path, is_same = find_image(row["file"], row["sha256"], folders)
                return (path, True) if is_same else (None, None if path is None else False)

            return find_file
        pixels = self._pixels()
        if pixels is None:
            return lambda row: (None, None)
        return lambda row: (pixels[row["sha256"]], True) if row["sha256"] in pixels else (None, False)

    def _pixels(self) -> dict[str, torch.Tensor] | None:
        """Return the images that are no files, by the SHA-256 of their pixels; None if they are not at hand."""
        try:
            images = self._load() if self._load else None
        except UserError:
            images = None
        if images is None:
            return None
        parts = (images.forget, images.forget_validation, images.retain, images.retain_validation)
        return {hashlib.sha256(image.numpy().tobytes()).hexdigest(): image for part in parts for image in part}

    def _sets(self, before: I2IModel) -> Sets:
        """Return the training images, each decoded for the model."""
        rows = [(position, row) for position, row in enumerate(self._content["images"]) if row["used_as"] == "training"]

        def stacked(chosen: Sequence[int]) -> torch.Tensor | None:
            found = [self._found.get(position) for position in chosen]
            if not found or any(image is None for image in found):
                return None
            return torch.stack([_pixels_of(image, before) for image in found])

        of_request: dict[str, list[int]] = {}
        for position, row in rows:
            if row["set"] == "forget":
                of_request.setdefault(row["request"], []).append(position)
        names = {
            request: [self._content["images"][p]["file"] for p in chosen] for request, chosen in of_request.items()
        }
        forget = {request: stacked(chosen) for request, chosen in of_request.items()}
        return Sets(forget, names, stacked([position for position, row in rows if row["set"] == "retain"]))


@dataclass(frozen=True)
class _Comparison:
    """Compares numbers that were computed again with those recorded.

    Attributes:
        near: relative tolerance.
        differs: whether the machine or its versions differ.
    """

    near: float
    differs: bool

    def __call__(self, subject: str, pairs: Sequence[tuple[str, float | None, float]]) -> Line:
        """Return a line about some numbers: their names, the recorded and the new values."""
        known = [(name, recorded, now) for name, recorded, now in pairs if recorded is not None]
        if not known:
            return Line(NOTE, f"{subject}: no number was recorded.")
        for name, recorded, now in known:
            if not math.isclose(recorded, now, rel_tol=self.near, abs_tol=_TINY):
                return Line(CONTRADICTS, f"{subject}: {name} is {now:.6g}, and the evidence states {recorded:.6g}.")
        said = ", ".join(f"{name} = {now:.6g}" for name, _, now in known)
        if all(recorded == now for _, recorded, now in known):
            return Line(HOLDS, f"{subject}: {said}; computed again, the same bits.")
        largest = max(abs(now - recorded) / max(abs(recorded), _TINY) for _, recorded, now in known)
        why = "" if self.differs else ", although machine and versions are the same"
        return Line(HOLDS, f"{subject}: {said}; computed again, within {self.near:g} (difference {largest:.1g}){why}.")


def _pairs(
    model: Mapping[str, Any], mine: Mapping[str, Mapping[str, Any]], measured: Measured, first: str
) -> Iterator[tuple[str, float | None, float]]:
    """Yield the name, the recorded and the new value of each number of a model."""
    for request, f1 in measured.f1.items():
        row, of = mine.get(request), f" of {request}" if len(measured.f1) > 1 else ""
        yield f"f1{of}", row["f1"] if row else model["f1"] if request == first else None, f1
        if row:
            yield f"f1 of the worst image{of}", row["worst_f1"], measured.worst[request][0]
    yield "f2", model["f2"], measured.f2


def _files(subject: str, place: Path | None, recorded: Mapping[str, str]) -> Iterator[Line]:
    """Compare the files of a model with those recorded."""
    if place is None:
        yield Line(NOT_AT_HAND, f"{subject}.")
        return
    there = folder_files(place)
    if there == recorded:
        yield Line(HOLDS, f"{subject}: {len(there)} file{'' if len(there) == 1 else 's'}, unchanged.")
        return
    for name in sorted(there.keys() | recorded.keys()):
        if name not in there:
            yield Line(CONTRADICTS, f"{subject}: {name} is missing.")
        elif name not in recorded:
            yield Line(CONTRADICTS, f"{subject}: {name} was added.")
        elif there[name] != recorded[name]:
            yield Line(CONTRADICTS, f"{subject}: {name} was changed.")


def _loaded(family: str, place: Path, device: torch.device) -> I2IModel:
    model = models.load(family, place)
    model.module.to(device)
    return model


def _pixels_of(image: Path | torch.Tensor | None, model: I2IModel) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        return image
    assert image is not None  # the caller checks it
    return torch.from_numpy(decode(image, model.size, model.channels).pixels)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
