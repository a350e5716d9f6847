"""Images in a column of a Hugging Face data set."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import UserError, require
from .reading import Source, read
from .sets import ForgetRetain, check_classes
from .storage import MEMORY

if TYPE_CHECKING:
    from datasets import Dataset


def open_dataset(path_or_id: str | os.PathLike[str], split: str = "train") -> Dataset:
    """One split of a data set, from a folder that ``save_to_disk`` wrote, or any that ``load_dataset`` knows.

    Args:
        path_or_id: folder or hub id.
        split: which; of a folder with one split alone, that one, whatever its name.

    Raises:
        UserError: it cannot be opened, there is no such split, or a missing extra.
    """
    datasets = require("datasets", "datasets")
    try:
        if not any((Path(path_or_id) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(os.fspath(path_or_id), split=split)
        saved = datasets.load_from_disk(path_or_id)
        return saved[split] if isinstance(saved, dict) else saved
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError, ConnectionError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"no split `{split}` of a data set could be opened from {path_or_id}: {said}") from error


def load_dataset_columns(
    dataset: Dataset,
    forget_classes: Sequence[str | int],
    *,
    size: int,
    channels: int,
    image_column: str | None = None,
    label_column: str | None = None,
    validation: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    memory: float = MEMORY,
) -> ForgetRetain:
    """One loaded split of a ``datasets.Dataset``, divided by class.

    What becomes of transparency, frames and copies is as in :func:`~unlearn_ext.data.load_folders`.

    Args:
        dataset: a split, for example ``datasets.load_dataset("cifar10", split="train")``.
        forget_classes: names or numbers of the classes to forget; all others are retained.
        size: side in pixels that the model works at.
        channels: 1 for grey, 3 for RGB.
        image_column: the column of images; by default the only one that there is.
        label_column: the column of classes; by default the only one of type ``ClassLabel``, else ``label``.
        validation: share of each side held out.
        seed: of the division into training and validation part.
        skip_bad: leave images that cannot be decoded out, with a warning, rather than stop.
        memory: GiB of pixels past which a set lies in a file.

    Raises:
        UserError: it is not one split, a column or a class is not there, or the images cannot be used.
    """
    datasets = require("datasets", "datasets")
    if isinstance(dataset, dict):
        raise UserError(f"choose one split of the data set, such as dataset[{next(iter(dataset), 'train')!r}].")
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(f"a loaded datasets.Dataset is needed, not {type(dataset).__name__} (streaming is not served).")
    images = image_column or _only_column(dataset, datasets.Image, "image_column")
    labels = label_column or _label_column(dataset, datasets.ClassLabel)
    for column in (images, labels):
        if column not in dataset.column_names:
            raise UserError(f"there is no column `{column}`; there are {', '.join(dataset.column_names)}.")
    if not isinstance(dataset.features[images], datasets.Image):
        raise UserError(f"the column `{images}` is not of type datasets.Image.")
    encoded = dataset.with_format(None).select_columns([images]).cast_column(images, datasets.Image(decode=False))
    chosen = _chosen(dataset, labels, forget_classes)
    forget, retain = (
        [Source(f"row {i}", _opener(encoded, i, images)) for i, is_chosen in enumerate(chosen) if is_chosen is side]
        for side in (True, False)
    )
    name = f"{dataset.info.dataset_name or 'data set'}, forgetting {', '.join(map(str, forget_classes))}"
    return read(
        name,
        forget,
        retain,
        size=size,
        channels=channels,
        validation=validation,
        seed=seed,
        skip_bad=skip_bad,
        memory=memory,
    )


def _only_column(dataset: Dataset, kind: type, argument: str) -> str:
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        which = f"which of {', '.join(found)} it is" if found else f"which; none is of type {kind.__name__}"
        raise UserError(f"say with {argument} {which}.")
    return found[0]


def _label_column(dataset: Dataset, kind: type) -> str:
    typed = any(isinstance(feature, kind) for feature in dataset.features.values())
    return "label" if not typed and "label" in dataset.column_names else _only_column(dataset, kind, "label_column")


def _chosen(dataset: Dataset, column: str, forget_classes: Sequence[str | int]) -> list[bool]:
    """Whether each row is of a class to forget."""
    values = list(dataset.with_format(None)[column])
    names = getattr(dataset.features[column], "names", None)
    if names is None:
        check_classes(forget_classes, sorted(set(values)), f"the column `{column}`")
        return [value in forget_classes for value in values]
    wanted = [names[entry] if isinstance(entry, int) and 0 <= entry < len(names) else entry for entry in forget_classes]
    check_classes(wanted, names, f"the column `{column}`")
    numbers = {names.index(entry) for entry in wanted}
    return [value in numbers for value in values]


def _opener(encoded: Dataset, row: int, column: str) -> Callable[[], Path | BinaryIO]:
    def open_row() -> Path | BinaryIO:
        image: dict[str, Any] | None = encoded[row][column]
        if image is None:
            raise ValueError("there is no image in this row")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else Path(image["path"])

    return open_row
