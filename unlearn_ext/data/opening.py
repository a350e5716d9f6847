"""Open a Hugging Face data set, from a folder or from the hub."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.hub import ask_hub, expanded, is_local
from ..errors import UserError, first_ten, require
from .folders import find_images

if TYPE_CHECKING:
    from types import ModuleType

    from datasets import Dataset

__all__ = ["open_dataset"]

_SAVED = ("state.json", "dataset_dict.json")  # save_to_disk writes one of them


def open_dataset(path_or_id: str | os.PathLike[str], split: str = "train") -> Dataset:
    """Open one split of a data set, from a folder written by ``save_to_disk`` or anything ``load_dataset`` accepts.

    A warning counts the images in the folder that are in no row of the split, because ``load_dataset`` skips files with
    a suffix that it does not know.

    Args:
        path_or_id: folder (``~`` is the home folder), or id on the Hugging Face hub. The hub is used only for what
            cannot be a path: a name, or ``owner/name`` if there is no folder ``owner``. If the hub does not answer, the
            library's cache is used.
        split: name of the split; ignored if ``save_to_disk`` saved a single split.

    Raises:
        UserError: there is no such folder or id, it cannot be opened, the split does not exist, or an extra is missing.
    """
    datasets = require("datasets", "datasets")
    local = is_local(path_or_id, owned=False)
    place = os.fspath(expanded(path_or_id))
    if Path(place).is_file():
        raise UserError(f"{place} is a file; give the folder that holds the data set.")
    silence = None if local else ask_hub(place, "dataset")
    name = os.path.abspath(place) if local else place  # a folder `csv` is not the library's module csv
    try:
        with _log_held_back("datasets", "huggingface_hub"), _offline(datasets.config, silence is not None):
            dataset = _load(datasets, name, split)
    except UserError:
        raise
    except Exception as error:  # the library and pyarrow raise many types
        reason = _reason(error)
        if silence:
            reason = f"there is no such folder, and the Hugging Face hub does not answer: {silence}"
        raise UserError(f"no split `{split}` of a data set could be opened from {place}: {reason}.") from error
    if local:
        _mention_images_without_row(Path(place), dataset, split)
    return dataset


def _load(datasets: ModuleType, place: str, split: str) -> Dataset:
    if not any(Path(place, file).is_file() for file in _SAVED):
        return datasets.load_dataset(place, split=split)
    saved = datasets.load_from_disk(place)
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise UserError(f"the data set in {place} has no split `{split}`; it has {', '.join(saved)}.")
    return saved[split]


def _reason(error: Exception) -> str:
    """Return the reason of an error in one line that a user understands."""
    if isinstance(error, require("datasets.exceptions", "datasets").DatasetGenerationError) and error.__cause__:
        error = error.__cause__  # its own message only says that an error occurred
    said = textwrap.shorten(str(error), 240, placeholder=" …").removesuffix(".")
    if isinstance(error, RuntimeError) and "script" in said:
        return (
            "it has a loading script, which the library datasets does not run any more: give a folder of images with "
            "--data-dir, or have the data set saved with save_to_disk"
        )
    if isinstance(error, (AttributeError, KeyError, TypeError, json.JSONDecodeError)):
        return f"its JSON files are not what save_to_disk writes: have it saved anew ({type(error).__name__}: {said})"
    if isinstance(error, require("pyarrow", "datasets").ArrowInvalid) or (type(error) is OSError and not error.errno):
        return f"a file of it is broken or cut off: {said}"
    return said or type(error).__name__


@contextmanager
def _log_held_back(*libraries: str) -> Iterator[None]:
    """Delay log records of libraries until the block ends; drop them if it raises, since the error says the same."""
    loggers = [getLogger(library) for library in libraries]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    held = BufferingHandler(sys.maxsize)
    for logger in loggers:
        logger.handlers, logger.propagate = [held], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
    for record in held.buffer:
        getLogger(record.name).handle(record)


@contextmanager
def _offline(config: Any, wanted: bool) -> Iterator[None]:
    """Let the library use only its cache, as with the environment variable HF_HUB_OFFLINE, if ``wanted``."""
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _mention_images_without_row(folder: Path, dataset: Dataset, split: str) -> None:
    datasets = require("datasets", "datasets")
    images = find_images(folder)
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if not images or not columns:
        return
    for column in columns:
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    flat = dataset.select_columns(columns).flatten()  # avoids reading the bytes of the images
    used = {os.path.realpath(path) for column in columns for path in flat[f"{column}.path"] if path}
    left = [str(path) for path in images if os.path.realpath(path) not in used]
    if left:
        many = f"{len(left)} images below {folder} are" if len(left) > 1 else f"1 image below {folder} is"
        warnings.warn(f"{many} in no row of the split `{split}`, and so in neither set:{first_ten(left)}", stacklevel=3)
