"""From what was typed to a model and its images; what cannot be meant is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import UserError

if TYPE_CHECKING:
    import torch

    from ..data import ForgetRetain
    from ..models import I2IModel
    from ..progress import Callback
    from ..run import Settings


@dataclass(frozen=True)
class Sources:
    """What the options name: images, task, model."""

    data: str | None
    data_dir: Path | None
    forget_classes: str | None
    forget: Path | None
    retain: Path | None
    skip_bad: bool
    task: str
    family: str
    model: str | None

    def check(self) -> None:
        """Refuse combinations that mean nothing."""
        if (self.forget is None) != (self.retain is None):
            raise typer.BadParameter("one's own images are two folders: give both --forget and --retain.")
        if sum(given is not None for given in (self.data, self.data_dir, self.forget)) > 1:
            raise typer.BadParameter("give one of --data, --data-dir, or --forget and --retain.")
        if self.forget and self.forget_classes:
            raise typer.BadParameter("--forget-classes is for --data and --data-dir; two folders have no classes.")
        if self.data_dir and not self.forget_classes:
            raise typer.BadParameter("--data-dir needs --forget-classes, the names of the sub-folders to forget.")
        if (self.forget or self.data_dir) and not self.model:
            raise typer.BadParameter("one's own images need --model, the checkpoint that is to forget.")

    def built_in(self, seed: int) -> tuple[ForgetRetain, str]:
        """Built-in images, and how the report names them."""
        from .. import data

        classes = labels("0,1" if self.forget_classes is None else self.forget_classes)
        images = data.load(self.data or "mnist", forget_classes=classes, seed=seed)
        return images, describe(images.name, classes)

    def own(self, size: int, channels: int, seed: int) -> ForgetRetain:
        """The user's own images at a model's size."""
        from .. import data

        if self.data_dir:
            classes = [name.strip() for name in (self.forget_classes or "").split(",")]
            return data.load_class_folders(
                self.data_dir, classes, size=size, channels=channels, seed=seed, skip_bad=self.skip_bad
            )
        return data.load_folders(
            self.forget, self.retain, size=size, channels=channels, seed=seed, skip_bad=self.skip_bad
        )


@dataclass(frozen=True)
class Problem:
    """A model, what it is to forget and to retain, and what is hidden from it."""

    model: I2IModel
    images: ForgetRetain
    task: Callable[[torch.Tensor], torch.Tensor]
    description: str


def labels(text: str) -> list[int]:
    """Labels of a built-in set: `3,8` as [3, 8]."""
    try:
        return [int(label) for label in text.split(",")]
    except ValueError:
        message = f"--forget-classes takes, for built-in images, numbers with commas between, such as 3,8, not {text}."
        raise typer.BadParameter(message) from None


def prepare(sources: Sources, seed: int, progress: Callback) -> Problem:
    """Read the images, and load or train the model."""
    from .. import models, tasks
    from ..pretrain import pretrained

    sources.check()
    task = tasks.parse(sources.task)
    if sources.forget or sources.data_dir:
        model = models.load(sources.family, sources.model)
        own = sources.own(model.size, model.channels, seed)
        return Problem(model, own, task, own.name)
    images, description = sources.built_in(seed)
    checkpoint = sources.model or pretrained(sources.family, images, task, seed=seed, progress=progress)
    model = models.load(sources.family, checkpoint)
    channels = images.forget.shape[1]
    if model.channels != channels:
        raise UserError(f"the model takes images of {model.channels} channels; those of {images.name} have {channels}.")
    return Problem(model, images, task, description)


def describe(name: str, classes: list[int] | tuple[int, ...]) -> str:
    """A built-in set as the report names it."""
    return f"{name}, forgetting class {', '.join(map(str, classes))}"


def settings(seed: int, steps: int | None, lr: float | None) -> Settings:
    """The usual settings, but for what was typed."""
    from ..run import Settings

    typed = {"steps": steps, "lr": lr}
    return Settings(seed=seed, **{name: value for name, value in typed.items() if value is not None})
