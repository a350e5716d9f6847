"""Distinguish local paths from Hugging Face hub ids, so that a mistyped path causes no network request."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError, require

__all__ = ["ask_hub", "check_reachable", "expanded", "is_local"]

_SECONDS = 10.0  # timeout of a request
# A text with one of these suffixes is a file name, not an id.
_SUFFIXES = (".arrow", ".bin", ".ckpt", ".csv", ".gz", ".json", ".jsonl", ".parquet", ".pt", ".pth", ".safetensors",
             ".tar", ".txt", ".zip")  # fmt: skip


def expanded(place: str | os.PathLike[str]) -> str | Path:
    """Return a path or an id with ``~`` replaced by the home folder, if it is known; text stays text."""
    known = os.path.expanduser(place)
    return known if isinstance(place, str) else Path(known)


def is_local(place: str | os.PathLike[str], *, owned: bool = True) -> bool:
    """Return True if a file or folder exists at a path, and False for a text that may be an id of the hub.

    Ids are strings such as ``owner/name``. These are paths, not ids: path objects, and strings that begin with ``.``,
    ``~`` or ``/``, contain two slashes or a backslash, end with the suffix of a file, or begin with an existing folder.

    Args:
        place: path or id; ``~`` is the home folder.
        owned: whether an id must have an owner; the ids of a few old data sets have none.

    Raises:
        UserError: the path does not exist, and is not an id.
    """
    path = Path(expanded(place))
    if os.path.exists(path):  # False for invalid paths, such as a very long text
        return True
    text = os.fspath(place)
    why = ""
    if isinstance(place, str) and path.suffix not in _SUFFIXES and _is_id(text):
        if "/" not in text:
            if not owned:
                return False
            why = "; an id of the Hugging Face hub has the form owner/name"
        elif path.parent.is_dir():
            why = f"; since there is a folder {path.parent}, this is not taken for an id of the Hugging Face hub"
        else:
            return False
    raise UserError(f"there is no {'file' if path.suffix in _SUFFIXES else 'folder'} {path}{why}.")


def _is_id(text: str) -> bool:
    hub = require("huggingface_hub.utils", "images")
    try:
        hub.validate_repo_id(text)
    except hub.HFValidationError:
        return False
    return True


def ask_hub(repository: str, kind: str) -> str | None:
    """Return why the Hugging Face hub does not answer, or None if it does.

    Without this check, the libraries would try six times, for half a minute.

    Args:
        repository: id of the repository.
        kind: ``"model"`` or ``"dataset"``.

    Raises:
        UserError: the repository does not exist, or this user has no access to it.
    """
    hub = require("huggingface_hub", "images")
    try:
        hub.repo_info(repository, repo_type=kind, timeout=_SECONDS)
    except hub.errors.GatedRepoError:
        return None  # the library's own message says what to do
    except hub.errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no folder {repository} here, and the Hugging Face hub has no {kind} {repository} that you may "
            "read."
        ) from error
    except hub.errors.HfHubHTTPError:
        return None  # the hub answers; the library reports the error later
    except Exception as error:  # no network, no such host, no answer in time, offline mode
        return str(error) or type(error).__name__
    return None


def check_reachable(place: str | os.PathLike[str]) -> None:
    """Check that a model exists locally, on the hub or in the hub's cache, before a library looks for it.

    Args:
        place: path or id.

    Raises:
        UserError: it exists in none of them, or the hub does not answer and its cache has no copy.
    """
    if is_local(place):
        return
    repository = os.fspath(place)
    silence = ask_hub(repository, "model")
    find = require("huggingface_hub", "images").try_to_load_from_cache
    is_cached = any(isinstance(find(repository, name), str) for name in ("config.json", "model_index.json"))
    if silence and not is_cached:
        raise UserError(f"there is no folder {repository}, and the Hugging Face hub does not answer: {silence}.")
