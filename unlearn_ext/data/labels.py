"""Read the classes of each row of a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError, require
from .classes import Label

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Labels", "class_names", "read_labels"]

_UNLABELLED = -1  # means "no label" if classes are numbered from 0


@dataclass(frozen=True)
class Labels:
    """The classes of a column.

    Attributes:
        where: description of the column for messages.
        classes: all classes, in order.
        rows: the classes of each row; empty if the row has no label.
        numbered: whether a class may also be given by its number, from 0.
    """

    where: str
    classes: Sequence[Label]
    rows: Sequence[tuple[Label, ...]]
    numbered: bool


def read_labels(dataset: Dataset, column: str) -> Labels:
    """Read the classes of a column of labels, or of lists of labels.

    None, NaN, empty strings and empty lists mean "no label"; so does -1 if the classes count from 0.

    Raises:
        UserError: the column has other values, such as lists with a zero or one for each class.
    """
    where = f"the column `{column}`"
    values = list(dataset.with_format(None)[column])
    rows = [tuple(filter(_is_label, value if isinstance(value, list) else [value])) for value in values]
    if not all(isinstance(label, Hashable) for row in rows for label in row):
        raise UserError(f"{where} must hold names or numbers of classes, or lists of them: choose another one.")
    names = class_names(dataset.features[column])
    if names is not None:
        return Labels(where, names, [_named(row, names, where) for row in rows], numbered=True)
    if isinstance(next(filter(None, values), None), list):
        _check_no_places(rows, where)
    classes = {label for row in rows for label in row}
    if {0, _UNLABELLED} <= classes:  # without 0, as in {-1, 1}, -1 is a class
        classes.remove(_UNLABELLED)
        rows = [tuple(label for label in row if label != _UNLABELLED) for row in rows]
        where = f"{where}, in which -1 means no label,"
    return Labels(where, sorted(classes), rows, numbered=False)


def class_names(feature: Any) -> list[str] | None:
    """Return the names of the classes in a column of type ``ClassLabel``, or of lists of it; None for other types."""
    element = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    is_classed = isinstance(element, require("datasets", "datasets").ClassLabel)
    return list(element.names) if is_classed else None


def _is_label(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value == value  # false for NaN


def _named(row: tuple[int, ...], names: list[str], where: str) -> tuple[str, ...]:
    labels = [number for number in row if number != _UNLABELLED]
    if any(number not in range(len(names)) for number in labels):
        raise UserError(f"{where} has {len(names)} classes, and holds the number {max(labels, key=abs)}.")
    return tuple(names[number] for number in labels)


def _check_no_places(rows: list[tuple[Label, ...]], where: str) -> None:
    """Raise ``UserError`` for lists with a zero or one for each class, which would be read as two classes."""
    lengths = {len(row) for row in rows if row}
    if len(lengths) == 1 and lengths.pop() > 1 and all(label in (0, 1) for row in rows for label in row):
        raise UserError(
            f"{where} holds lists of zeros and ones, a place for each class: make them lists of the numbers or the "
            "names of the classes."
        )
