"""Find the classes to forget among the classes of a data set."""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from ..errors import UserError

__all__ = ["Label", "choose"]

Label = str | int | float | bool  # or any other type with comparison, such as a date
_There = TypeVar("_There", bound=Label)

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def choose(
    wanted: str | Sequence[Label], there: Sequence[_There], where: str, *, numbered: bool = False
) -> list[_There]:
    """Return the classes to forget.

    Names that look the same are equal, whether their accents are composed (NFC) or decomposed (NFD). A string also
    matches a number or a boolean: ``"3"`` matches 3 and 3.0, ``"true"`` matches True. If a string may be a name or a
    position, it is taken as the name, with a warning.

    Args:
        wanted: the classes; or one string, as typed by the user, with commas between the classes. Names that contain
            commas are recognised, the longest first.
        there: all classes of the data set, in the order in which messages list them.
        where: description of the data set for messages.
        numbered: whether a class may also be given by its position in ``there``, from 0.

    Returns:
        Members of ``there``, in its order.

    Raises:
        UserError: a class does not exist, or none is left to forget or to retain; the message lists the classes.
    """

    def find(entry: Label) -> list[_There]:
        named, at_position = _named(entry, there), _at_position(entry, there) if numbered else []
        return named or at_position if isinstance(entry, str) else at_position or named

    def is_class(name: str) -> bool:
        return bool(find(name))

    typed = _split(wanted, is_class) if isinstance(wanted, str) else []
    entries: Sequence[Label] = typed if isinstance(wanted, str) else list(wanted)
    found = [find(entry) for entry in entries]
    more = f" and {len(there) - 10} more" if len(there) > 10 else ""
    known = f"it has {', '.join(map(_shown, there[:10]))}{more}"
    missing = [_shown(entry) for entry, labels in zip(entries, found, strict=True) if not labels]
    if missing:
        raise UserError(f"{where} has no class {', '.join(missing)}; {known}.")
    meant = {label for labels in found for label in labels}
    if not meant or len(meant) == len(there):
        raise UserError(f"forget at least one class of {where}, and leave at least one to retain; {known}.")
    doubts = _doubts(typed, is_class, there if numbered else ())
    for sentence in (*doubts, *_twins(meant)):
        warnings.warn(sentence, stacklevel=3)
    return [label for label in there if label in meant]


def _named(entry: Label, there: Sequence[_There]) -> list[_There]:
    """Return the classes of a name: several if their names look the same."""
    labels = [label for label in there if _means(entry, label)]
    if labels or not isinstance(entry, str):
        return labels
    return [label for label in there if _means(entry.strip(), label)]


def _means(entry: Label, label: Label) -> bool:
    if isinstance(label, str):
        return _composed(entry) == _composed(label)
    if not isinstance(entry, str):
        return entry == label
    if isinstance(label, bool) or not isinstance(label, (int, float)):
        return entry.lower() == str(label).lower()
    return _number(entry) == label


def _composed(label: Label) -> str:
    return unicodedata.normalize("NFC", str(label))


def _at_position(entry: Label, there: Sequence[_There]) -> list[_There]:
    number = _number(entry)
    return [there[int(number)]] if number is not None and number in range(len(there)) else []


def _number(entry: Label) -> float | None:
    """Return an entry as a number; None for booleans and for names."""
    if isinstance(entry, str):
        return float(entry) if _NUMBER.fullmatch(entry.strip()) else None
    return entry if isinstance(entry, (int, float)) and not isinstance(entry, bool) else None


def _split(text: str, is_class: Callable[[str], bool]) -> list[str]:
    """Split a string at commas, but not at commas inside class names."""
    parts, entries = text.split(","), []
    while parts:
        lengths = [length for length in range(len(parts), 1, -1) if is_class(",".join(parts[:length]))]
        length = lengths[0] if lengths else 1
        entries.append(",".join(parts[:length]))
        del parts[:length]
    return entries


def _doubts(entries: Sequence[str], is_class: Callable[[str], bool], positions: Sequence[Label]) -> Iterator[str]:
    """Yield a warning for each typed entry that is ambiguous."""
    for entry in entries:
        if "," in entry and all(map(is_class, entry.split(","))):
            yield (
                f"{_shown(entry)} is taken for the one class of that name; the parts between its commas are classes "
                "too: to name these, write them in another order."
            )
        others = [label for label in _at_position(entry, positions) if not _means(entry.strip(), label)]
        if others and _named(entry, positions):
            yield f"{entry} is taken for the name of a class, and not for the position of {_shown(others[0])}."


def _twins(meant: Iterable[Label]) -> Iterator[str]:
    """Yield a warning for classes whose names look the same."""
    for form, labels in groupby(sorted(meant, key=_composed), key=_composed):
        if len(list(labels)) > 1:
            yield (
                f"several classes are named {_shown(form)}: one has composed accents, the other decomposed ones; all "
                "are to be forgotten."
            )


def _shown(label: Label) -> str:
    """Return a name for use in a message, quoted if its start or end would be unclear otherwise."""
    text = str(label)
    plain = text and text.isprintable() and text == text.strip() and "," not in text
    return text if plain else json.dumps(text, ensure_ascii=False)
