"""Audit the models of a finished run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._utils.file_lock import locked
from ..data import ForgetRetain
from ..errors import UserError
from ..models import I2IModel, load_like
from ..tasks import Task
from ..unlearning.identity import identity, seen
from ..unlearning.run_folder import RunFolder, read_run
from ..unlearning.settings import Settings
from .cache import Cache
from .canaries import CANARIES, read_canaries
from .compression import COMPRESSION
from .context import RETRAINED, UNMODIFIED, Context
from .decoder import DECODER
from .estimates import counted
from .linear_reader import LINEAR_READER
from .membership import MEMBERSHIP
from .protocol import Audit, Finding
from .relearning import RELEARNING
from .table import FILE, AuditRow, write_audit

__all__ = ["AUDITS", "audit", "default_points"]

FEW = 30  # images to measure on below which a warning is given
AUDITS = (LINEAR_READER, DECODER, RELEARNING, MEMBERSHIP, CANARIES, COMPRESSION)


def audit(
    run: str | PathLike[str],
    unmodified: I2IModel,
    images: ForgetRetain,
    *,
    task: Task,
    points: Sequence[str] | None = None,
    retrained: str | PathLike[str] | None = None,
    canaries: str | PathLike[str] | None = None,
    audits: Sequence[Audit] = AUDITS,
    progress: Callable[[str], None] | None = None,
) -> list[AuditRow]:
    """Audit models of a run beside the unmodified one, and write ``audit.csv`` into the run's folder.

    Each finished audit of a model is stored. A later call computes only what is missing or has changed.

    Args:
        run: folder of the run.
        unmodified: the model that the run started from; the models to audit are moved to its device.
        images: the images of the run. Held-out images may be missing (empty tensors).
        task: the task T.
        points: names of the models to audit; by default those of :func:`default_points`.
        retrained: folder or hub id of a model of the same family, for images of the same size, that was trained without
            the images to forget.
        canaries: folder with images known to be in the training set, and look-alikes that were not, see
            :func:`~unlearn_ext.audit.canaries.read_canaries`.
        audits: the audits to run; findings are stored under their names.
        progress: called with the names of the model and of the audit before each audit that has to be computed.

    Returns:
        The rows of ``audit.csv``, grouped by audit; in each, first the unmodified model.

    Raises:
        UserError: the folder is not that of a finished run; there is no such point; a model, an image or a canary
            cannot be used; or an extra is missing.
    """
    folder = read_run(Path(run))
    names = _checked(folder, points)
    with locked(folder.path):
        cache = Cache(folder.path)
        given = None if canaries is None else read_canaries(canaries, unmodified)
        settings = Settings(**folder.metrics["settings"])
        variance = folder.metrics.get("units", {}).get("variance")  # a run after another one keeps the first one's
        context = Context.of(unmodified, images, task, settings, variance=variance, canaries=given)
        _mention_few(context)
        origin = identity(unmodified, _sets(images), task, None, settings, variance=variance)
        rows = []
        for point, model in _models(folder, names, unmodified, retrained):
            audited = replace(context, point=point, model=model)
            for each in audits:
                found = cache.recall(_identity(audited, each, origin), partial(_run, each, audited, progress))
                rows += [AuditRow(point, each.name, *astuple(finding)) for finding in found]
        order = [each.name for each in audits]
        rows.sort(key=lambda row: order.index(row.audit))
        write_audit(folder.path, rows)
    return rows


def default_points(run: RunFolder) -> list[str]:
    """Return the names of the most forgotten model at a requested ε, and of the one in the middle."""
    asked = run.asked
    return list(dict.fromkeys(point.name for point in (asked[0], asked[len(asked) // 2])))


def _checked(run: RunFolder, points: Sequence[str] | None) -> list[str]:
    """Return the names of the points to audit.

    Raises:
        UserError: the run has no such point.
    """
    names, known = list(dict.fromkeys(points or default_points(run))), [point.name for point in run.points]
    for name in names:
        if name not in known:
            raise UserError(f"the run in {run.path} has no point `{name}`; it has {', '.join(known)}.")
    return names


def _models(
    run: RunFolder, names: Sequence[str], unmodified: I2IModel, retrained: str | PathLike[str] | None
) -> Iterator[tuple[str, I2IModel]]:
    """Yield the models under the names in the table, each loaded when its turn comes."""
    yield UNMODIFIED, unmodified
    places = {RETRAINED: retrained} if retrained is not None else {}
    for name, place in {**places, **{name: run.path / name for name in names}}.items():
        model = load_like(unmodified, place)
        takes, expected = (f"{one.size}x{one.size} pixels and {one.channels} channels" for one in (model, unmodified))
        if takes != expected:
            raise UserError(f"the model {place} takes images of {takes}, but the images of the run have {expected}.")
        model.module.to(unmodified.device)
        yield name, model


def _mention_few(context: Context) -> None:
    """Warn if there are so few images to measure on that the intervals are wide."""
    for part in (context.forget, context.retain):
        there = len(part.held_out) or len(part.training) // 2
        if there < FEW:
            warnings.warn(
                f"{counted(there)} to measure on in the {part.name} set: mind the intervals in {FILE}.", stacklevel=4
            )


def _sets(images: ForgetRetain) -> dict[str, torch.Tensor]:
    """Return the sets that are not empty, by name."""
    return {name: part for name, part in vars(images).items() if isinstance(part, torch.Tensor) and len(part)}


def _identity(context: Context, audit: Audit, origin: dict[str, Any]) -> dict[str, Any]:
    """Return all that the findings of an audit depend on."""
    one = {"forget": context.forget.training[:1]}
    model = identity(context.model, one, context.task, None, context.settings)["model"]
    role = context.point if context.point in (UNMODIFIED, RETRAINED) else "point"
    said = {"audit": audit.name, "origin": origin, "model": model, "role": role}
    if audit is CANARIES and context.canaries is not None:
        said["canaries"] = seen(vars(context.canaries), context.task, None)
    return said


def _run(audit: Audit, context: Context, progress: Callable[[str], None] | None) -> list[Finding]:
    if progress is not None:
        progress(f"{context.point}: {audit.name}")
    return audit.run(context)
