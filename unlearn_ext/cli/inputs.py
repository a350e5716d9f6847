"""Turn the typed options into a model and its images, and reject invalid combinations before anything is trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .._utils.distributed import is_first
from ..errors import UserError
from .ability import say_ability
from .options import Machine, Small, Sources, Training
from .place import Place
from .terminal import out

if TYPE_CHECKING:
    import torch

    from ..data import ForgetRetain
    from ..data.augment import Augment
    from ..models import I2IModel
    from ..tasks import Task
    from ..unlearning.progress import Callback
    from ..unlearning.settings import Settings

__all__ = ["Prepared", "built_in", "describe", "device_named", "keep_apart", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A model, its images to forget and to retain, its task, and the settings of its training."""

    model: I2IModel
    images: ForgetRetain
    task: Task
    description: str
    settings: Settings
    augment: Augment | None = None


def prepare(
    sources: Sources, training: Training, machine: Machine, progress: Callback, place: Place | None = None
) -> Prepared:
    """Read the images, load or train the model, and move it to its device.

    Args:
        sources: images, task and model, as typed.
        training: training options.
        machine: device, precision and memory options.
        progress: called while a small model is trained.
        place: output folder of the run, checked as early as possible; None if nothing is written.

    Raises:
        UserError: the images, the model, the settings or the output folder cannot be used.
        typer.BadParameter: options contradict each other, or one that another needs is missing.
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
    if place and is_first():
        sets = {"images to forget": images.forget, "images to retain": images.retain}
        say_ability(model, task, sets, "unlearning them cannot show anything; see `unlearn-ext pretrain --help`")
    return Prepared(model, images, task, description, settings, augmentation)


def keep_apart(out: Path, sources: Sources) -> None:
    """Raise ``UserError`` if an input folder and the output folder are the same or one contains the other."""
    for read in (sources.model, sources.data_dir, sources.dataset, sources.forget, sources.retain):
        if read is not None and os.path.exists(original := Path(read).expanduser()):
            written, original = out.resolve(), original.resolve()
            if written == original or written in original.parents or original in written.parents:
                raise UserError(
                    f"the output folder {out} and the input {read} are the same folder or one contains the other: "
                    "choose another --out."
                )


def built_in(small: Small, seed: int, size: int | None = None) -> tuple[ForgetRetain, str]:
    """Return built-in images and their name in the report; the default size is that of the family's small model."""
    from .. import data
    from ..models import check_family
    from ..pretrain import RECIPES

    check_family(small.family)
    size = size or RECIPES[small.family].size
    classes = _labels("0,1" if small.forget_classes is None else small.forget_classes)
    images = data.load(small.data or "mnist", forget_classes=classes, size=size, seed=seed)
    return images, describe(images.name, classes)


def describe(name: str, classes: list[int] | tuple[int, ...]) -> str:
    """Return the name of a built-in set and its forgotten classes for the report."""
    return f"{name}, forgetting class {', '.join(map(str, classes))}"


def _check(sources: Sources) -> None:
    """Reject combinations of options that contradict each other or are incomplete."""
    if (sources.forget is None) != (sources.retain is None):
        raise typer.BadParameter("your own images need two folders: give both --forget and --retain.")
    own = (sources.data_dir, sources.dataset, sources.forget)
    if sum(given is not None for given in (sources.data, *own)) > 1:
        raise typer.BadParameter("give one of --data, --data-dir, --dataset, or --forget and --retain.")
    if sources.forget and sources.forget_classes:
        raise typer.BadParameter("--forget and --retain have no classes: leave out --forget-classes.")
    classed = "--data-dir" if sources.data_dir else "--dataset" if sources.dataset else None
    if classed and not sources.forget_classes:
        raise typer.BadParameter(f"{classed} needs --forget-classes, the names of the classes to forget.")
    if any(own) and not sources.model:
        raise typer.BadParameter("your own images need --model, the checkpoint to unlearn.")


def _images(sources: Sources, size: int, channels: int, settings: Settings) -> tuple[ForgetRetain, str]:
    """Return the images that the options name, at the model's size, and their name in the report."""
    from .. import data

    how: dict[str, Any] = {
        "size": size, "channels": channels, "seed": settings.seed, "skip_bad": sources.skip_bad,
        "memory": settings.memory,
    }  # fmt: skip
    classes = sources.forget_classes or ""
    if sources.data_dir:
        images = data.load_class_folders(sources.data_dir, classes, **how)
    elif sources.dataset:
        columns: dict[str, Any] = {"image_column": sources.image_column, "label_column": sources.label_column}
        images = data.load_dataset_columns(data.open_dataset(sources.dataset, sources.split), classes, **columns, **how)
    elif sources.forget and sources.retain:
        images = data.load_folders(sources.forget, sources.retain, **how)
    else:
        return built_in(sources, settings.seed, size)
    return images, images.name


def _labels(text: str) -> list[int]:
    """Parse labels of a built-in set: `3,8` becomes [3, 8]."""
    try:
        return [int(label) for label in text.split(",")]
    except ValueError:
        message = f"for built-in images --forget-classes must be numbers separated by commas, such as 3,8, not {text}."
        raise typer.BadParameter(message) from None


def _settings(training: Training, machine: Machine) -> Settings:
    """Return the default settings, changed by the options that were typed."""
    from ..unlearning.settings import Settings

    given = {"steps": training.steps, "lr": training.lr, "batch_size": training.batch_size, "memory": machine.memory}
    typed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    typed["sharpness"] = training.sharpness
    return Settings(seed=training.seed, precision=machine.precision, compile=machine.compile, **typed)


def device_named(name: str | None) -> torch.device:
    """Return the named device; without a name, this process's GPU if there is one, else the CPU.

    Raises:
        UserError: torch cannot use this device here.
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
        model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's overloads
    if machine.checkpointing:
        model.enable_gradient_checkpointing()
