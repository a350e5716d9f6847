"""The tables of a run folder about its requests and images, one dataclass for the rows of each."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from .._utils.atomic_io import write_table
from ..errors import UserError

__all__ = [
    "IMAGES",
    "NOT_AT_HAND",
    "PER_IMAGE",
    "REQUESTS",
    "TRAINED",
    "ImageF1",
    "RequestRow",
    "read_rows",
    "write_rows",
]

IMAGES, REQUESTS, PER_IMAGE = "images.csv", "requests.csv", "per_image.csv"
TRAINED, NOT_AT_HAND = "trained", "not at hand"  # values of RequestRow.held

Row = TypeVar("Row")


@dataclass(frozen=True)
class RequestRow:
    """One request and one model: a row of ``requests.csv``.

    Attributes:
        point: name of the model.
        request: name of the request.
        epsilon: ε of the request.
        f1_unmodified: f1 of the unmodified model over the request's training images.
        f1: f1 of the model over them; NaN if they are not at hand.
        f1_validation: f1 over held-out images of the request; NaN if there are none.
        images: number of training images; of those of the earlier run if they are not at hand.
        worst_f1: the largest f1 of one training image.
        worst_file: that image.
        above: number of training images whose own f1 is above ε; -1 if they are not at hand.
        held: ``"trained"`` if f1 ≤ ε was a constraint of the training, ``"not at hand"`` if the images of an earlier
            request could not be read.
        since: name of the folder of the earlier run that the request comes from; empty for a run's own.
        held_out: number of images that were held out for validation.
        left_out: number of images that were named and not used.
    """

    point: str
    request: str
    epsilon: float
    f1_unmodified: float
    f1: float
    f1_validation: float
    images: int
    worst_f1: float
    worst_file: str
    above: int
    held: str = TRAINED
    since: str = ""
    held_out: int = 0
    left_out: int = 0

    @property
    def is_at_hand(self) -> bool:
        """Whether f1 could be computed."""
        return not math.isnan(self.f1)


@dataclass(frozen=True)
class ImageF1:
    """f1 of one training image to forget, for one model and the unmodified one: a row of ``per_image.csv``."""

    point: str
    request: str
    file: str
    f1: float
    f1_unmodified: float


_TYPES: dict[str, Any] = {"str": str, "float": float, "int": int}


def write_rows(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """Write rows of a dataclass as a table with a column for each of its fields.

    Raises:
        UserError: the file cannot be written.
    """
    columns = [field.name for field in fields(kind)]
    write_table(path, columns, ([getattr(row, column) for column in columns] for row in rows))


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read what :func:`write_rows` wrote; an empty list if there is no such file, as in runs of earlier versions.

    Raises:
        UserError: the file cannot be read, a column is missing, or a value has another type.
    """
    columns = {field.name: _TYPES[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return [kind(**{name: convert(row[name]) for name, convert in columns.items()}) for row in rows]
    except FileNotFoundError:
        return []
    except KeyError as error:
        raise UserError(f"{path} cannot be read: it has no column {error.args[0]}.") from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table of a run: {error}.") from error
