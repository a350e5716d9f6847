"""Parse the requests as typed: `--forget NAME=DIR` and `--epsilon NAME=VALUE`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from ..data.sets import FORGET
from ..errors import UserError

if TYPE_CHECKING:
    from ..unlearning.earlier import Earlier
    from ..unlearning.epsilons import Epsilon
    from .options import Sources

__all__ = ["asked_epsilons", "folders_to_forget", "request_names", "typed_epsilons"]

_NAME = re.compile(r"\w[\w .+-]*")


def folders_to_forget(sources: Sources) -> dict[str, str]:
    """Return the folders of ``--forget`` by the name of the request; empty if images are given otherwise.

    A folder without a name is that of the only request.

    Raises:
        typer.BadParameter: a name is missing, or given twice.
    """
    typed = [_split(text) for text in sources.forget]
    if len(typed) > 1 and any(name is None for name, _ in typed):
        raise typer.BadParameter("several requests need names: give --forget NAME=DIR for each.")
    names = [name or FORGET for name, _ in typed]
    _refuse_twice("--forget", names)
    return {name: folder for name, (_, folder) in zip(names, typed, strict=True)}


def request_names(sources: Sources, earlier: Earlier | None) -> dict[str, str]:
    """Return the names of the run's own requests, by their names in the images that are loaded.

    A request without a name is called ``forget``; if an earlier run has that name, ``forget-2`` and so on.

    Raises:
        typer.BadParameter: an earlier run has a request with the name that was typed.
    """
    taken = {row.request for row in earlier.requests} if earlier else set()
    folders = folders_to_forget(sources)
    if all(_split(text)[0] is None for text in sources.forget):  # also if there is none
        free = (FORGET, *(f"{FORGET}-{number}" for number in range(2, len(taken) + 3)))
        return {FORGET: next(name for name in free if name not in taken)}
    for name in folders:
        if name in taken and earlier:
            raise typer.BadParameter(f"{earlier.folder} has a request named {name} already: choose another name.")
    return {name: name for name in folders}


def asked_epsilons(typed: Sequence[str], names: Sequence[str]) -> dict[str, Epsilon]:
    """Return the ε of each request by its name.

    Args:
        typed: values of ``--epsilon``: ``VALUE`` for the only request, or ``NAME=VALUE``.
        names: names of the requests.

    Raises:
        typer.BadParameter: a value is no ε, or a request has none or two.
    """
    asked: dict[str, Epsilon] = {}
    for text in typed:
        name, _, value = text.rpartition("=")
        if not name and len(names) > 1:
            raise typer.BadParameter(f"say for which request --epsilon {text} is: --epsilon {names[0]}={text}.")
        name = name or names[0]
        if name not in names:
            raise typer.BadParameter(f"--epsilon {text}: there is no request {name}; there is {', '.join(names)}.")
        _refuse_twice("--epsilon", [*asked, name])
        (asked[name],) = typed_epsilons([value])
    if missing := [name for name in names if name not in asked]:
        raise typer.BadParameter(f"the request {missing[0]} has no ε: give --epsilon {missing[0]}=VALUE.")
    return {name: asked[name] for name in names}


def typed_epsilons(typed: Sequence[str]) -> list[Epsilon]:
    """Return values of ``--epsilon`` that have no names.

    Raises:
        typer.BadParameter: one is no ε.
    """
    from ..unlearning.epsilons import parse_epsilon

    try:
        return [parse_epsilon(text) for text in typed]
    except UserError as error:
        raise typer.BadParameter(str(error), param_hint="'--epsilon'") from None


def _split(text: str) -> tuple[str | None, str]:
    """Return the name and the folder of NAME=DIR; an existing folder may have such a name itself."""
    name, is_named, folder = text.partition("=")
    if not is_named or not _NAME.fullmatch(name) or os.path.isdir(os.path.expanduser(text)):
        return None, text
    return name, folder


def _refuse_twice(option: str, names: Sequence[str]) -> None:
    if twice := [name for name in dict.fromkeys(names) if list(names).count(name) > 1]:
        raise typer.BadParameter(f"{option} is given twice for the request {twice[0]}.")
