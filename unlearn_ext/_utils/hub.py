"""Tell local paths from ids of the Hugging Face hub, so that nothing is asked of the network for a mistyped path."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError, require

__all__ = ["ask_hub", "check_reachable", "expanded", "is_local"]

_SECONDS = 10.0  # that the hub has to answer
# How names of files end, and no id does.
_SUFFIXES = (".arrow", ".bin", ".ckpt", ".csv", ".gz", ".json", ".jsonl", ".parquet", ".pt", ".pth", ".safetensors",
             ".tar", ".txt", ".zip")  # fmt: skip


def expanded(place: str | os.PathLike[str]) -> str | Path:
    """Return a path or an id with the home folder in the place of ``~``; a path object stays one."""
    return os.path.expanduser(place) if isinstance(place, str) else Path(place).expanduser()


def is_local(place: str | os.PathLike[str], *, owned: bool = True) -> bool:
    """Return whether a file or folder of that name is there; False for what may be an id of the hub.

    Ids are texts such as ``owner/name``. What looks like a path is none: a path object, a text that begins with ``.``,
    ``~`` or ``/``, holds two slashes or a backslash, ends like a file, or begins with a folder that is there.

    Args:
        place: path or id; ``~`` is the home folder.
        owned: whether an id has an owner. A few old data sets are called by a name alone.

    Raises:
        UserError: nothing is there, and it is no id.
    """
    path = Path(expanded(place))
    if os.path.exists(path):  # for what cannot be a path, such as a very long text, it is False
        return True
    text = os.fspath(place)
    why = ""
    if isinstance(place, str) and path.suffix not in _SUFFIXES and _is_id(text):
        if "/" not in text:
            if not owned:
                return False
            why = "; an id of the Hugging Face hub would be written as owner/name"
        elif path.parent.is_dir():
            why = f"; since there is a folder {path.parent}, this is not taken for an id of the Hugging Face hub"
        else:
            return False
    raise UserError(f"there is no folder {path}{why}.")


def _is_id(text: str) -> bool:
    hub = require("huggingface_hub.utils", "images")
    try:
        hub.validate_repo_id(text)
    except hub.HFValidationError:
        return False
    return True


def ask_hub(repository: str, kind: str) -> str | None:
    """Return why the Hugging Face hub does not answer, or None if it does.

    The libraries would try six times, for half a minute.

    Args:
        repository: its id.
        kind: ``"model"`` or ``"dataset"``.

    Raises:
        UserError: the hub has no such repository for this user.
    """
    hub = require("huggingface_hub", "images")
    try:
        hub.repo_info(repository, repo_type=kind, timeout=_SECONDS)
    except hub.errors.GatedRepoError:
        return None  # the libraries say what to do
    except hub.errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no folder {repository} here, and the Hugging Face hub has no {kind} {repository} that you may "
            "read."
        ) from error
    except hub.errors.HfHubHTTPError:
        return None  # it answers: what it has against the request, the libraries say
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
    cached = require("huggingface_hub", "images").try_to_load_from_cache(repository, "config.json")
    if silence and not isinstance(cached, str):
        raise UserError(f"there is no folder {repository}, and the Hugging Face hub does not answer: {silence}.")
