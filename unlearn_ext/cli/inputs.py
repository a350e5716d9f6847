"""From what was typed to a model and its images; what cannot be meant is refused before anything is trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import UserError
from .options import Machine, Small, Sources, Training
from .place import Place
from .terminal import out

if TYPE_CHECKING:
    import torch

    from ..data import ForgetRetain
    from ..data.augment import Augment
    from ..models import I2IModel
    from ..unlearning.batches import Task
    from ..unlearning.progress import Callback
    from ..unlearning.settings import Settings

__all__ = ["Problem", "built_in", "describe", "device_named", "keep_apart", "prepare"]


@dataclass(frozen=True)
class Problem:
    """A model, what it is to forget and to retain, what is hidden from it, and how it is trained."""

    model: I2IModel
    images: ForgetRetain
    task: Task
    description: str
    settings: Settings
    augment: Augment | None = None


def prepare(
    sources: Sources, training: Training, machine: Machine, progress: Callback, place: Place | None = None
) -> Problem:
    """Read the images, load or train the model, and bring it to where it works.

    Args:
        sources: images, task and model, as they were typed.
        training: how the model is trained.
        machine: where it works.
        progress: called while a small model is trained.
        place: where a run is to be written, which is checked as early as it can be; None where nothing is written.

    Raises:
        UserError: see what is called.
        typer.BadParameter: options that exclude or need each other.
    """
    from .. import models, tasks
    from ..data import augment
    from ..pretrain import pretrained
    from ..unlearning.identity import known, seen
    from ..unlearning.validation import check_model

    _check(sources)
    models.check_family(sources.family)
    task, augmentation = tasks.parse(sources.task), augment.parse(sources.augment)
    settings = _settings(training, machine)
    device = device_named(machine.device)
    if place:
        place.check(known(sources.family, settings))
    if sources.model:
        model = models.load(sources.family, sources.model)
        images, description = _images(sources, model.size, model.channels, settings)
    else:
        images, description = built_in(sources, settings.seed)
        if place:
            place.check(seen({"forget": images.forget, "retain": images.retain}, task, augmentation))
        folder = pretrained(sources.family, images, task, seed=settings.seed, progress=progress)
        model = models.load(sources.family, folder)
    channels = images.forget.shape[1]
    if model.channels != channels:
        raise UserError(f"the model takes images of {model.channels} channels; those of {images.name} have {channels}.")
    check_model(model)
    _place(model, device, machine)
    count = sum(parameter.numel() for parameter in model.encoder_parameters())
    out.print(f"{model.family}: {count:,} parameters to train, on {model.device}, in {settings.precision}")
    return Problem(model, images, task, description, settings, augmentation)


def keep_apart(out: Path, sources: Sources) -> None:
    """Raises ``UserError`` where what is read lies in the folder that is written to, or that in it."""
    for read in (sources.model, sources.data_dir, sources.dataset, sources.forget, sources.retain):
        if read is not None and os.path.exists(original := Path(read).expanduser()):
            written, original = out.resolve(), original.resolve()
            if written == original or written in original.parents or original in written.parents:
                raise UserError(
                    f"{out}, which is written to, and {read}, which is only read, are one folder or one lies in the "
                    "other: choose another --out."
                )


def built_in(small: Small, seed: int, size: int | None = None) -> tuple[ForgetRetain, str]:
    """Built-in images, of the size of the family's small model if none is given, and how the report calls them."""
    from .. import data
    from ..models import check_family
    from ..pretrain import RECIPES

    check_family(small.family)
    size = size or RECIPES[small.family].size
    classes = _labels("0,1" if small.forget_classes is None else small.forget_classes)
    images = data.load(small.data or "mnist", forget_classes=classes, size=size, seed=seed)
    return images, describe(images.name, classes)


def describe(name: str, classes: list[int] | tuple[int, ...]) -> str:
    """A built-in set as the report names it."""
    return f"{name}, forgetting class {', '.join(map(str, classes))}"


def _check(sources: Sources) -> None:
    """Refuse combinations that mean nothing."""
    if (sources.forget is None) != (sources.retain is None):
        raise typer.BadParameter("images of your own are two folders: give both --forget and --retain.")
    own = (sources.data_dir, sources.dataset, sources.forget)
    if sum(given is not None for given in (sources.data, *own)) > 1:
        raise typer.BadParameter("give one of --data, --data-dir, --dataset, or --forget and --retain.")
    if sources.forget and sources.forget_classes:
        raise typer.BadParameter("--forget-classes is of no use to --forget and --retain: two folders have no classes.")
    classed = "--data-dir" if sources.data_dir else "--dataset" if sources.dataset else None
    if classed and not sources.forget_classes:
        raise typer.BadParameter(f"{classed} needs --forget-classes, the names of the classes to forget.")
    if any(own) and not sources.model:
        raise typer.BadParameter("images of your own need --model, the checkpoint that is to forget.")


def _images(sources: Sources, size: int, channels: int, settings: Settings) -> tuple[ForgetRetain, str]:
    """What the options name, at a model's size, and how the report calls it."""
    from .. import data

    how = {
        "size": size, "channels": channels, "seed": settings.seed, "skip_bad": sources.skip_bad,
        "memory": settings.memory,
    }  # fmt: skip
    classes = sources.forget_classes or ""
    if sources.data_dir:
        images = data.load_class_folders(sources.data_dir, classes, **how)
    elif sources.dataset:
        columns = {"image_column": sources.image_column, "label_column": sources.label_column}
        images = data.load_dataset_columns(data.open_dataset(sources.dataset, sources.split), classes, **columns, **how)
    elif sources.forget and sources.retain:
        images = data.load_folders(sources.forget, sources.retain, **how)
    else:
        return built_in(sources, settings.seed, size)
    return images, images.name


def _labels(text: str) -> list[int]:
    """Labels of a built-in set: `3,8` as [3, 8]."""
    try:
        return [int(label) for label in text.split(",")]
    except ValueError:
        message = f"--forget-classes takes, for built-in images, numbers with commas between, such as 3,8, not {text}."
        raise typer.BadParameter(message) from None


def _settings(training: Training, machine: Machine) -> Settings:
    """The usual settings, but for what was typed."""
    from ..unlearning.settings import Settings

    typed = {"steps": training.steps, "lr": training.lr, "batch_size": training.batch_size, "memory": machine.memory}
    typed = {name: value for name, value in typed.items() if value is not None}
    return Settings(seed=training.seed, precision=machine.precision, compile=machine.compile, **typed)


def device_named(name: str | None) -> torch.device:
    """The device of that name; where there is none, this process's GPU, or the CPU.

    Raises:
        UserError: torch has no such device here.
    """
    import torch

    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {name} cannot be used here: {str(error).splitlines()[0]}") from error


def _place(model: I2IModel, device: torch.device, machine: Machine) -> None:
    import torch

    model.module.to(device)
    if machine.channels_last:
        model.module.to(memory_format=torch.channels_last)
    if machine.checkpointing:
        model.enable_gradient_checkpointing()
