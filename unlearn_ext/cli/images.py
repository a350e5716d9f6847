"""The images that options name: those of a run to come, and those of a finished run as far as they are at hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import UserError, first_ten
from .asked import folders_to_forget
from .options import Small, Sources
from .prompts import takes_prompts
from .sources_file import kept

if TYPE_CHECKING:
    from ..data import ForgetRetain
    from ..models import I2IModel
    from ..unlearning.run_folder import RunFolder
    from ..unlearning.settings import Settings

__all__ = ["built_in", "counts", "describe", "named_images", "recovered"]


def built_in(small: Small, seed: int, size: int | None = None, validation: float = 0.2) -> tuple[ForgetRetain, str]:
    """Return built-in images and their name in the report; the default size is that of the family's small model."""
    from .. import data
    from ..pretrain import recipe_of

    size = size or recipe_of(small.family).size
    classes = _labels("0,1" if small.forget_classes is None else small.forget_classes)
    images = data.load(small.data or "mnist", forget_classes=classes, size=size, validation=validation, seed=seed)
    return images, describe(images.name, classes)


def describe(name: str, classes: list[int] | tuple[int, ...]) -> str:
    """Return the name of a built-in set and its forgotten classes for the report."""
    return f"{name}, forgetting class {', '.join(map(str, classes))}"


def named_images(sources: Sources, size: int, channels: int, settings: Settings) -> tuple[ForgetRetain, str]:
    """Return the images that the options name, at the model's size, and their name in the report.

    Without ``--retain``, folders of images to forget have an empty retain set.
    """
    from .. import data

    how: dict[str, Any] = {
        "size": size, "channels": channels, "seed": settings.seed, "skip_bad": sources.skip_bad,
        "memory": settings.memory, "validation": sources.validation,
    }  # fmt: skip
    beside = {"prompts": takes_prompts(sources.family)}
    classes = sources.forget_classes or ""
    if sources.data_dir:
        images = data.load_class_folders(sources.data_dir, classes, **how, **beside)
    elif sources.dataset:
        columns = {name: getattr(sources, name) for name in ("image_column", "label_column", "prompt_column")}
        images = data.load_dataset_columns(data.open_dataset(sources.dataset, sources.split), classes, **columns, **how)
    elif sources.forget:
        images = data.load_folders(folders_to_forget(sources), sources.retain, **how, **beside)
    else:
        return built_in(sources, settings.seed, size, sources.validation)
    return images, images.name


def counts(images: ForgetRetain) -> str:
    """Return a sentence with the numbers of images that are used, held out and left out."""
    from ..data.sets import FORGET, LEFT_OUT, RETAIN, TRAINING, VALIDATION

    of_requests = images.requests if len(images.requests) > 1 else [None]
    said = []
    for side, requests in ((FORGET, of_requests), (RETAIN, [None])):
        for request in requests:
            used, held_out, left_out = (images.count(side, use, request) for use in (TRAINING, VALIDATION, LEFT_OUT))
            name = f" ({request})" if request else ""
            said.append(f"to {side}{name}: {used} used, {held_out} held out, {left_out} left out")
    return f"Images {'; '.join(said)}."


def recovered(run: RunFolder, model: I2IModel, memory: float) -> ForgetRetain:
    """Return the images of a run and of the runs that it continued, as far as they are at hand; warn of the others.

    Args:
        run: the content of the run's folder.
        model: the model for whose size the images are read.
        memory: limit in GiB; a larger set is stored in a file instead of memory.
    """
    from ..data import recover
    from ..unlearning.earlier import chain

    found = (part for folder in chain(run.path) for part in _everything(kept(folder), model, memory))
    images = recover(run.metrics["dataset"], run.images, found, memory)
    _mention_missing(images, run)
    return images


def _everything(sources: Sources, model: I2IModel, memory: float) -> Iterator[ForgetRetain]:
    """Yield all images that the options of a run name, as far as they can be read."""
    from .. import data
    from ..unlearning.settings import Settings

    whole = replace(sources, family=model.family, validation=0.0, skip_bad=True)
    how: dict[str, Any] = {"size": model.size, "channels": model.channels, "validation": 0.0, "skip_bad": True,
                           "memory": memory, "prompts": takes_prompts(model.family)}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the run gave them
        folders: list[tuple[dict[str, str], Path | None]]
        folders = [({name: folder}, None) for name, folder in folders_to_forget(sources).items()]
        if sources.retain:
            folders.append(({}, sources.retain))
        for to_forget, retain in folders:
            with suppress(UserError):
                yield data.load_folders(to_forget, retain, **how)
        if not sources.forget:
            with suppress(UserError):
                yield named_images(whole, model.size, model.channels, Settings(memory=memory))[0]


def _mention_missing(images: ForgetRetain, run: RunFolder) -> None:
    """Warn of images that the run used and that are not at hand, once for each request and for the retain set."""
    from ..data.sets import LEFT_OUT, RETAIN

    gone: dict[str, list[str]] = {}
    for before, now in zip(run.images, images.listed, strict=True):
        if before.used_as != now.used_as == LEFT_OUT:
            what = "to retain" if now.set == RETAIN else f"of the request {now.request}"
            gone.setdefault(what, []).append(f"{now.file} {now.reason}")
    for what, files in gone.items():
        many = f"{len(files)} images {what} are" if len(files) > 1 else f"1 image {what} is"
        warnings.warn(f"{many} not at hand as in {run.path}, and left out:{first_ten(files)}", stacklevel=2)


def _labels(text: str) -> list[int]:
    """Parse labels of a built-in set: `3,8` becomes [3, 8]."""
    try:
        return [int(label) for label in text.split(",")]
    except ValueError:
        message = f"for built-in images --forget-classes must be numbers separated by commas, such as 3,8, not {text}."
        raise typer.BadParameter(message) from None
