"""An earlier run that another run continues: its model, its units and its requests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..models import I2IModel
from ..models.adapters import unadapted
from .dial import restored
from .identity import weights_digest
from .run_folder import RunFolder, read_run
from .tables import REQUESTS, RequestRow, read_rows

__all__ = ["Earlier", "chain", "f1_then", "read_earlier"]

METRICS = "metrics.json"


@dataclass(frozen=True)
class Earlier:
    """A model of an earlier run, from which another run starts.

    Attributes:
        run: the content of the run's folder.
        point: name of the model.
        requests: the requests that the model has met, those of its own earlier runs included.
    """

    run: RunFolder
    point: str
    requests: tuple[RequestRow, ...]

    @property
    def folder(self) -> Path:
        """The folder of the run, as an absolute path."""
        return self.run.path.resolve()

    @property
    def first(self) -> Path:
        """The folder of the first run of the chain that is still there."""
        return chain(self.folder)[-1]

    @property
    def variance(self) -> float:
        """The unit of f1 and f2 of the run."""
        return float(self.run.metrics["units"]["variance"])

    def since(self, request: str) -> str:
        """Return the name of the folder of the run that a request comes from; empty for another request."""
        found = next((row for row in self.requests if row.request == request), None)
        return "" if found is None else found.since or self.folder.name

    @property
    def lora(self) -> int | None:
        """The rank of the run's adapter; None if there is none."""
        return self.run.metrics["settings"].get("lora")

    def model(self, original: I2IModel, lora: int | None = None) -> I2IModel:
        """Return a copy of the unmodified model with the encoder of the earlier run's model.

        Args:
            original: the unmodified model, with an adapter if there is one.
            lora: rank of the adapter; that of the earlier run.

        Raises:
            UserError: the earlier model cannot be loaded, ``original`` is not the model that the run started from, or
                the rank is another one.
        """
        if weights_digest(unadapted(original)) != self.run.metrics["units"]["model"]:
            raise UserError(
                f"the model is not the one that {self.folder} started from, so its f1 and f2 cannot be continued: give "
                "the unmodified model of that run."
            )
        if lora != self.lora:
            its = "no adapter" if self.lora is None else f"an adapter of rank {self.lora}"
            raise UserError(f"{self.folder} was trained with {its}: continue it with the same rank (lora).")
        return restored(original, self.folder / self.point)

    def identity(self) -> dict[str, Any]:
        """Return what a run's result depends on, see :mod:`unlearn_ext.unlearning.identity`."""
        asked = {row.request: row.epsilon for row in self.requests}
        return {"earlier requests": asked, "variance": self.variance}


def read_earlier(place: str | Path) -> Earlier:
    """Read the run that another one continues.

    Args:
        place: folder of a finished run to one ε; or the folder of one model in the folder of a run or a sweep.

    Raises:
        UserError: there is no such run or model, or an earlier version of this package wrote it.
    """
    path = Path(place).expanduser()
    inside = not (path / "front.csv").exists() and (path.parent / "front.csv").exists()
    run = read_run(path.parent if inside else path)
    if not isinstance(run.metrics.get("units"), dict) or not run.requests:
        raise UserError(f"{run.path} was written by an earlier version, which did not record what --after needs.")
    names = [point.name for point in run.points]
    if not inside and len(names) > 1:
        raise UserError(f"{path} has {len(names)} models: say which one to start from, such as {path / names[0]}.")
    if inside and path.name not in names:
        raise UserError(f"{run.path} has no model {path.name}; it has {', '.join(names)}.")
    point = path.name if inside else names[0]
    return Earlier(run, point, tuple(run.requests_of(point)))


def chain(folder: Path) -> list[Path]:
    """Return the folders of a run, of the run that it continued, and so on, as far as they are there.

    Raises:
        UserError: a run's ``metrics.json`` cannot be read.
    """
    return [path for path, _ in _links(folder)]


def f1_then(earlier: Earlier) -> dict[str, float]:
    """Return f1 of each request at the end of the run that it comes from, as far as the folders are there."""
    then: dict[str, float] = {}
    point = earlier.point
    for folder, point_before in _links(earlier.folder):
        rows = [row for row in read_rows(folder / REQUESTS, RequestRow) if row.point == point]
        then |= {row.request: row.f1 for row in rows if not row.since}
        point = point_before
    return then


def _links(folder: Path) -> list[tuple[Path, str]]:
    """Return the folders of a chain, each with the model of the next one that it started from."""
    links: list[tuple[Path, str]] = []
    following: Path | None = folder.resolve()
    while following is not None and (following / METRICS).is_file():
        try:
            metrics = json.loads((following / METRICS).read_text(encoding="utf-8"))
            after, point = metrics.get("after"), str(metrics.get("after_point") or "")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{following / METRICS} cannot be read: {error}.") from error
        links.append((following, point))
        following = Path(after) if isinstance(after, str) else None
        if following in [path for path, _ in links]:
            break
    return links
