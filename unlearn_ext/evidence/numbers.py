"""Compute f1, f2 and the worst image of each model again, and compare them with those recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import models
from ..models import I2IModel
from ..models.adapters import UNMODIFIED, has_adapter
from . import machine
from .files import AtHand
from .lines import CONTRADICTS, HOLDS, NOT_AT_HAND, NOTE, Line
from .recompute import Measured, Meter

__all__ = ["NEAR", "NEAR_ELSEWHERE", "numbers"]

NEAR = 1e-4  # relative tolerance; on the same machine with the same versions, the bits are the same
NEAR_ELSEWHERE = 1e-2  # on another kind of device, or in mixed precision, whose products have only 8 to 11 bits
_TINY = 1e-7  # absolute tolerance

Pair = tuple[str, float | None, float]  # name of a number, as recorded, as computed now


def numbers(run: Path, content: Mapping[str, Any], at_hand: AtHand) -> Iterator[Line]:
    """Yield a line for the model before and for each model of the run that is at hand.

    Args:
        run: folder of the run.
        content: its evidence.
        at_hand: images and models, after they were compared.
    """
    command, then = content["command"], content["made_with"]
    on_gpu = then["device"].startswith("cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    differing = machine.differences(then, machine.conditions(then["device"] if on_gpu else "cpu"))
    if differing:
        yield Line(NOTE, f"the machine or its versions differ: {'; '.join(differing)}.")
    if at_hand.before is None:
        yield Line(NOT_AT_HAND, "f1 and f2 were not computed again, without the model before as it was.")
        return
    before = _loaded(command, at_hand.before, device, at_hand.configuration)
    sets = at_hand.training_images(before)
    if sets.retain is None:
        yield Line(NOT_AT_HAND, "f1 and f2 were not computed again, without all images to retain as they were.")
        return
    if hasattr(before, "prompts"):
        before.prompts, changed = at_hand.prompts(sets, before)
        if changed:
            yield Line(NOT_AT_HAND, f"f1 and f2 were not computed again, without all prompts as they were: {changed}.")
            return
    for request in (request for request, images in sets.forget.items() if images is None):
        yield Line(NOT_AT_HAND, f"f1 of request {request} was not computed again, without all its images as they were.")
    meter = Meter(before, sets.retain, sets.forget, command, at_hand.sources.get("augment") or [])
    is_elsewhere = then["device"].partition(":")[0] != device.type or command["settings"].get("precision") != "float32"
    is_adapted = command["settings"].get("lora") is not None
    if is_adapted:
        yield Line(NOTE, "adapters are merged into the weights for this, so the last bits of numbers differ.")
    compare = _Comparison(NEAR_ELSEWHERE if is_elsewhere else NEAR, bool(differing) or is_adapted)
    first = next(iter(sets.forget), "")
    rows = content["requests"]
    recorded = {row["request"]: row["f1_unmodified"] for row in rows} or {first: command["f1_unmodified"]}
    if unmodified := meter.unmodified():
        yield compare("model before", [(f"f1 of {name}", recorded.get(name), f1) for name, f1 in unmodified.items()])
    for model in content["models"]["after"]:
        place = run / model["name"]
        if has_adapter(place) and not (run / UNMODIFIED).is_dir():
            yield Line(
                NOT_AT_HAND, f"model {model['name']}: its adapter cannot be used without the folder {UNMODIFIED}."
            )
        elif model["name"] in at_hand.after:
            measured = meter.measure(_loaded(command, place, device))
            mine = {row["request"]: row for row in rows if row["point"] == model["name"]}
            yield compare(f"model {model['name']}", list(_pairs(model, mine, measured, first)))


@dataclass(frozen=True)
class _Comparison:
    """Compares numbers that were computed again with those recorded.

    Attributes:
        near: relative tolerance.
        differs: whether the machine or its versions differ.
    """

    near: float
    differs: bool

    def __call__(self, subject: str, pairs: Sequence[Pair]) -> Line:
        """Return a line about some numbers of a model."""
        known = [(name, recorded, now) for name, recorded, now in pairs if recorded is not None]
        for name, recorded, now in known:
            if not math.isclose(recorded, now, rel_tol=self.near, abs_tol=_TINY):
                return Line(CONTRADICTS, f"{subject}: {name} is {now:.6g}, and the evidence states {recorded:.6g}.")
        if not known:
            return Line(NOTE, f"{subject}: no number was recorded.")
        said = f"{subject}: {', '.join(f'{name} = {now:.6g}' for name, _, now in known)}; computed again"
        if all(recorded == now for _, recorded, now in known):
            return Line(HOLDS, f"{said}, the same bits.")
        largest = max(abs(now - recorded) / max(abs(recorded), _TINY) for _, recorded, now in known)
        why = "" if self.differs else ", although machine and versions are the same"
        return Line(HOLDS, f"{said}, within {self.near:g} (difference {largest:.1g}){why}.")


def _pairs(
    model: Mapping[str, Any], mine: Mapping[str, Mapping[str, Any]], measured: Measured, first: str
) -> Iterator[Pair]:
    """Yield the numbers of a model.

    Args:
        model: the model in the evidence.
        mine: its rows in the section ``requests``, by request; empty in evidence of earlier versions.
        measured: its numbers as computed now.
        first: the request whose f1 is that of ``model``.
    """
    for request, f1 in measured.f1.items():
        of = f" of {request}" if len(measured.f1) > 1 else ""
        if request in mine:
            yield f"f1{of}", mine[request]["f1"], f1
            yield f"f1 of the worst image{of}", mine[request]["worst_f1"], measured.worst_f1[request]
        elif request == first:
            yield f"f1{of}", model["f1"], f1
    yield "f2", model["f2"], measured.f2


def _loaded(
    command: Mapping[str, Any], place: Path, device: torch.device, configuration: Path | None = None
) -> I2IModel:
    model = models.load(str(command["family"]), place, configuration)
    model.module.to(device)
    return model
