"""The configuration file of a checkpoint: which one it is, and its content."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError, require

__all__ = ["CONFIGURATIONS", "find_configuration", "read_configuration"]

CONFIGURATIONS = (".yaml", ".yml", ".json")  # suffixes
_LARGEST = 64 << 10  # bytes; a model's configuration has a few thousand
# Where training programs put the configuration, by the name of the folder that holds the checkpoints.
_LAYOUTS = {"checkpoints": "configs/*-project.yaml", "checkpoint": "config.json"}
# A string, which may contain what looks like a comment; or a comment.
_STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\])*(?:"|\Z))|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)


def find_configuration(path: Path) -> Path | None:
    """Return the configuration file that belongs to a checkpoint file; None if there is none.

    It has the checkpoint's name with another suffix; or is where a training program that also wrote the checkpoint's
    folder puts it, such as ``configs/*-project.yaml`` beside ``checkpoints/``; or is the only one in the folder, unless
    it has the name of another checkpoint there. Hidden files, which are notes of tools, are left out.

    Raises:
        UserError: several files may be meant.
    """
    folder = path.absolute().parent
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    beside = [file for file in files if file.suffix in CONFIGURATIONS]
    same = [file for file in beside if file.stem == path.stem]
    layout = sorted(folder.parent.glob(_LAYOUTS[folder.name])) if folder.name in _LAYOUTS else []
    for found in (same, layout):
        if len(found) > 1:
            raise UserError(
                f"{found[0]} and {found[1].name} may both be the configuration of {path.name}: name one with "
                "--model-config."
            )
        if found:
            return found[0]
    of_others = {file.stem for file in files if file not in beside}
    return beside[0] if len(beside) == 1 and beside[0].stem not in of_others else None


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file, or of a JSON file that may contain comments (``//`` and ``/* */``).

    Raises:
        UserError: the file cannot be read, or is not a mapping in one of the two languages.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise UserError(f"the configuration {path} cannot be read: {error.strerror}.") from error
    if len(text) > _LARGEST:
        raise UserError(f"{path} has more than {_LARGEST} bytes, too many for the configuration of a model.")
    if path.suffix not in CONFIGURATIONS:
        raise UserError(f"{path} is not a configuration: give a file that ends with {', '.join(CONFIGURATIONS)}.")
    try:
        content = (_json if path.suffix == ".json" else _yaml)(text.decode("utf-8-sig"))
    except Exception as error:  # PyYAML raises errors of many types, RecursionError among them
        said = textwrap.shorten(str(error), 240, placeholder=" …") or type(error).__name__
        raise UserError(f"the configuration {path} cannot be read: {said}.") from error
    if not isinstance(content, dict):
        raise UserError(f"the configuration {path} contains no names with values.")
    return content


def _json(text: str) -> Any:
    plain = _STRING_OR_COMMENT.sub(lambda found: found[1] or " ", text)
    return json.loads(plain, object_pairs_hook=_distinct)


def _yaml(text: str) -> Any:
    yaml = require("yaml", "images")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]  # the module is imported at run time
        """The safe loader without aliases, which can multiply: ten nested ones make a list of 10^10 elements."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError(f"it uses an alias, *{self.peek_event().anchor}: write out its value")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Mapping[Any, Any]:
            _distinct((self.construct_object(key, True), None) for key, _ in node.value)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def _distinct(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dictionary of pairs.

    Raises:
        ValueError: a name occurs twice.
    """
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has {name!r} twice in the same place")
        found[name] = value
    return found
