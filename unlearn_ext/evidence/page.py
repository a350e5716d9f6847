"""The printable page of the evidence, in the report's style; all values are escaped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, require

__all__ = ["render"]

_SHOWN = ("original", "corrupted", "unmodified")
_FILES = 2000  # files listed in the appendix; evidence.json has all


@dataclass(frozen=True)
class Row:
    """What one model reached for one request; numbers are None where they are not known.

    Attributes:
        point: name of the model.
        role: its role in the sweep.
        asked: the limit as typed, if it was.
        epsilon: the limit.
        f1: f1 reached.
        share: f1 as a share of the model before.
        f1_validation: f1 on validation images.
        images: number of training images.
        worst_f1: largest f1 of a single image.
        worst_share: the same as a share of the model before.
        worst_file: its file.
        above: number of training images above the limit.
        held: ``trained``, ``measured`` or ``not at hand``.
        f2: damage to the retained.
        f2_validation: the same on validation images.
    """

    point: str
    role: str
    asked: str | None
    epsilon: float | None
    f1: float | None
    share: float | None
    f1_validation: float | None
    images: int | None
    worst_f1: float | None
    worst_share: float | None
    worst_file: str
    above: int | None
    held: str
    f2: float | None
    f2_validation: float | None

    @property
    def holds(self) -> bool | None:
        """Whether f1 ≤ ε; None if either is not known."""
        return None if self.f1 is None or self.epsilon is None else self.f1 <= self.epsilon


def render(run: Path, content: Mapping[str, Any]) -> str:
    """Return the page of some evidence.

    Args:
        run: folder of the run, for its pictures; they are shown only if the run kept all of them.
        content: the evidence.

    Raises:
        UserError: the library for templates is not installed, or the pictures are to be shown and cannot be read.
    """
    jinja2 = require("jinja2", "report")
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(f"unlearn_ext.{part}", ".") for part in ("evidence", "report")])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "percent": _percent, "moment": _moment}
    requests = _requests(content)
    limits = [
        row.holds for rows in requests.values() for row in rows if row.role == "epsilon" and row.holds is not None
    ]
    uses = Counter((row["set"], row["request"], row["used_as"]) for row in content["images"])
    return environment.get_template("evidence_page.html").render(
        evidence=content,
        requests=requests,
        asked=len(limits),
        kept=sum(limits),
        since={row["request"]: row["since"] for row in content["requests"] if row["since"]},
        uses=uses,
        groups=list(dict.fromkeys((row["set"], row["request"]) for row in content["images"])),
        left_out=[row for row in content["images"] if row["used_as"] == "left out"],
        most=_FILES,
        pictures=_pictures(run, content) if content["pictures"] == "all" else [],
    )


def _requests(content: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return what each model reached, by request; earlier versions recorded one request without a table of its own."""
    models = {model["name"]: model for model in content["models"]["after"]}
    recorded = content["requests"] or [
        {
            "point": name, "request": "forget", "asked": None, "f1_unmodified": content["command"]["f1_unmodified"],
            "images": None, "worst_f1": None, "worst_file": "", "above": None, "held": "trained",
            **{column: model[column] for column in ("epsilon", "f1", "f1_validation")},
        }
        for name, model in models.items()
    ]  # fmt: skip
    requests: dict[str, list[Row]] = {}
    for row in recorded:
        if row["point"] in models:
            requests.setdefault(row["request"], []).append(_row(row, models[row["point"]]))
    order = list(models)
    return {name: sorted(rows, key=lambda row: order.index(row.point)) for name, rows in requests.items()}


def _row(row: Mapping[str, Any], model: Mapping[str, Any]) -> Row:
    unmodified = row["f1_unmodified"]

    def share(f1: float | None) -> float | None:
        return f1 / unmodified if f1 is not None and unmodified else None

    names = ("point", "asked", "epsilon", "f1", "f1_validation", "images", "worst_f1", "worst_file", "above", "held")
    return Row(
        role=model["role"], share=share(row["f1"]), worst_share=share(row["worst_f1"]), f2=model["f2"],
        f2_validation=model["f2_validation"], **{name: row[name] for name in names},
    )  # fmt: skip


def _pictures(run: Path, content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return a name and two pictures, to forget and to retain, for each model at a requested ε and its references."""
    from ..report.strip import tiles
    from ..report.style import data_uri

    points = [model["name"] for model in content["models"]["after"] if model["role"] == "epsilon"]
    try:
        with np.load(run / "samples.npz", allow_pickle=False) as archive:
            is_forget = archive["is_forget"].astype(bool)
            named = {name: archive[name] for name in (*_SHOWN, *points) if name in archive.files}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the pictures in {run / 'samples.npz'} cannot be read: {error}.") from error
    return [
        (name, data_uri(tiles(images[is_forget])), data_uri(tiles(images[~is_forget])))
        for name, images in named.items()
    ]


def _number(value: float | None, places: int = 4) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _moment(text: str) -> str:
    """Return an ISO 8601 time for people: ``2026-01-31T10:05:00Z`` becomes ``2026-01-31 10:05 UTC``."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(\.\d+)?(Z|\+00:00)$", r"\1 \2 UTC", text)
