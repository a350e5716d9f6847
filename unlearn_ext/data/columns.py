"""Read images from a column of a Hugging Face data set."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import UserError, require
from .classes import Label, choose
from .labels import class_names, read_labels
from .reading import Source, read
from .sets import FORGET, ForgetRetain
from .storage import MEMORY

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_dataset_columns"]


def load_dataset_columns(
    dataset: Dataset,
    forget_classes: str | Sequence[Label],
    *,
    size: int,
    channels: int,
    image_column: str | None = None,
    label_column: str | None = None,
    prompt_column: str | None = None,
    validation: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    memory: float = MEMORY,
) -> ForgetRetain:
    """Divide one loaded split of a ``datasets.Dataset`` by class.

    An image with several labels is forgotten if one of them is in ``forget_classes``. An image without a label (None,
    NaN, an empty string or list, or -1 if the classes count from 0) is in neither set; a warning states their number.
    Transparency, frames and copies are handled as in :func:`~unlearn_ext.data.load_folders`.

    Args:
        dataset: a split, for example ``datasets.load_dataset("cifar10", split="train")``.
        forget_classes: names, numbers or booleans of the classes to forget, or one string of them with commas between
            them; all others are retained. Names that look the same (equal in Unicode form NFC) are equal. A class of a
            ``ClassLabel`` may also be given by its number; a string is tried as a name first.
        size: height and width in pixels of the model's images.
        channels: 1 for grey, 3 for RGB.
        image_column: the column of images; may be omitted if there is only one.
        label_column: the column of classes, or of lists of classes; by default the only column of type ``ClassLabel``
            or of lists of it, or ``label`` if there is no such column.
        prompt_column: the column of the images' prompts; a row with None has no prompt of its own.
        validation: fraction of each set held out for validation; 0: every image is used for training.
        seed: random seed of the split into training and validation images.
        skip_bad: skip images that cannot be decoded, with a warning, instead of raising.
        memory: limit in GiB; a larger set of pixels is stored in a file instead of memory.

    Raises:
        UserError: ``dataset`` is not a single split, a column or class does not exist, or the images cannot be used.
    """
    datasets = require("datasets", "datasets")
    if isinstance(dataset, dict):
        raise UserError(f"choose one split of the data set, such as dataset[{next(iter(dataset), 'train')!r}].")
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(f"a loaded datasets.Dataset is needed, not {type(dataset).__name__} (streaming is not served).")
    image = image_column or _image_column(dataset)
    label = label_column or _label_column(dataset)
    for column in (image, label, *([prompt_column] if prompt_column else [])):
        if column not in dataset.column_names:
            raise UserError(f"there is no column `{column}`; there are {', '.join(dataset.column_names)}.")
    if not isinstance(dataset.features[image], datasets.Image):
        raise UserError(f"the column `{image}` is not of type datasets.Image.")
    encoded = dataset.with_format(None).select_columns([image]).cast_column(image, datasets.Image(decode=False))
    labels = read_labels(dataset, label)
    chosen = choose(forget_classes, labels.classes, labels.where, numbered=labels.numbered)
    _mention_unlabelled(labels.rows.count(()))
    prompts = _prompts(dataset, prompt_column)
    forget, retain = (
        [
            Source(f"row {number}", _opener(encoded, number, image), prompts[number])
            for number, row in enumerate(labels.rows)
            if row and any(each in chosen for each in row) is side
        ]
        for side in (True, False)
    )
    name = f"{dataset.info.dataset_name or 'data set'}, forgetting {', '.join(map(str, chosen))}"
    return read(
        name,
        {FORGET: forget},
        retain,
        size=size,
        channels=channels,
        validation=validation,
        seed=seed,
        skip_bad=skip_bad,
        memory=memory,
    )


def _prompts(dataset: Dataset, column: str | None) -> list[str | None]:
    """Return the prompt of each row; None if it has none.

    Raises:
        UserError: the column has other values than text.
    """
    if column is None:
        return [None] * len(dataset)
    texts = list(dataset.with_format(None)[column])
    if others := [text for text in texts if not isinstance(text, (str, type(None)))]:
        raise UserError(f"the column `{column}` must hold texts, the prompts, but one value is {others[0]!r}.")
    return texts


def _only_column(dataset: Dataset, is_one: Callable[[Any], object], kind: str, argument: str) -> str:
    found = [name for name, feature in dataset.features.items() if is_one(feature)]
    if len(found) != 1:
        which = f"the columns {', '.join(found)} are" if found else "no column is"
        option = argument.replace("_", "-")
        raise UserError(f"{which} of type {kind}: name one with --{option} (from Python, {argument}).")
    return found[0]


def _image_column(dataset: Dataset) -> str:
    kind = require("datasets", "datasets").Image
    return _only_column(dataset, lambda feature: isinstance(feature, kind), "Image", "image_column")


def _label_column(dataset: Dataset) -> str:
    typed = any(class_names(feature) for feature in dataset.features.values())
    if not typed and "label" in dataset.column_names:
        return "label"
    return _only_column(dataset, class_names, "ClassLabel", "label_column")


def _mention_unlabelled(count: int) -> None:
    if count:
        rows = "1 row without a label is" if count == 1 else f"{count} rows without a label are"
        warnings.warn(f"{rows} in neither set.", stacklevel=3)


def _opener(encoded: Dataset, row: int, column: str) -> Callable[[], Path | BinaryIO]:
    def open_row() -> Path | BinaryIO:
        image: dict[str, Any] | None = encoded[row][column]
        if image is None:
            raise ValueError("there is no image in this row")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else Path(image["path"])

    return open_row
