"""The options that commands share, a group of them a dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..data.augment import KNOWN as AUGMENTATIONS
from ..models import FAMILIES
from ..unlearning.settings import PRECISIONS

__all__ = ["Device", "Family", "Machine", "Seed", "Small", "Sources", "Training", "unfolded"]


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Family = Annotated[str, _option("Model", f"Kind of model: {', '.join(FAMILIES)}.", metavar="FAMILY")]


Seed = Annotated[int, _option("Training", "Of everything random.")]


Device = Annotated[
    str | None,
    _option("Machine", "As torch names it: cpu, cuda, cuda:1, mps.", show_default="a GPU where there is one"),
]


@dataclass(frozen=True)
class Small:
    """Built-in images, a task, and the family of the small model for them."""

    data: Annotated[
        str | None,
        _option("Images", "Built-in images: mnist (needs no network) or fashion-mnist.", show_default="mnist"),
    ] = None
    forget_classes: Annotated[
        str | None,
        _option("Images", "What to forget: labels of the built-in images, names of sub-folders or of a data set's "
                "classes, with commas between them; names may contain commas.", metavar="CLASSES",
                show_default="0,1 of the built-in images"),
    ] = None  # fmt: skip
    task: Annotated[
        str,
        _option("Images", "What is hidden from the model: center-crop:F, outpaint:F (F of a side is kept), "
                "random-mask:F or reconstruct (nothing).", metavar="TASK"),
    ] = "center-crop:0.5"  # fmt: skip
    family: Family = "vqgan"


@dataclass(frozen=True)
class Sources(Small):
    """Images, task, model."""

    data_dir: Annotated[Path | None, _option("Images", "Your own images, a folder with a sub-folder a class.")] = None
    forget: Annotated[Path | None, _option("Images", "Your own images to forget, a folder.")] = None
    retain: Annotated[Path | None, _option("Images", "Your own images to retain, a folder.")] = None
    dataset: Annotated[
        str | None,
        _option(
            "Images",
            "A data set of Hugging Face's library datasets: a folder, or an id of its hub (a name, or owner/name).",
            metavar="DIR",
        ),
    ] = None
    split: Annotated[str, _option("Images", "Of --dataset.")] = "train"
    image_column: Annotated[
        str | None, _option("Images", "Of --dataset.", metavar="NAME", show_default="the only column of images")
    ] = None
    label_column: Annotated[
        str | None, _option("Images", "Of --dataset.", metavar="NAME", show_default="the only column of classes")
    ] = None
    skip_bad: Annotated[bool, _option("Images", "Leave out images that cannot be read.", "--skip-bad")] = False
    augment: Annotated[
        list[str],
        _option("Images", f"Of training images: {', '.join(AUGMENTATIONS)}; may be given twice. The unmodified model "
                "then works at every step.", metavar="NAME", show_default="none"),
    ] = field(default_factory=list)  # fmt: skip
    model: Annotated[
        str | None,
        _option("Model", "Checkpoint: a folder, or an id of the Hugging Face hub, owner/name.", metavar="DIR",
                show_default="a small one, trained once and cached"),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Training:
    """What is left out is what suits the small built-in models."""

    seed: Seed = 0
    steps: Annotated[
        int | None,
        _option("Training", "Steps per anchor of a sweep; a run takes three times as many.", min=1,
                show_default="by the number of images"),
    ] = None  # fmt: skip
    batch_size: Annotated[int | None, _option("Training", "Images a minibatch, of either side.", min=1)] = None
    lr: Annotated[float | None, _option("Training", "Learning rate.")] = None


@dataclass(frozen=True)
class Machine:
    """What the work is done with."""

    device: Device = None
    precision: Annotated[
        str, _option("Machine", f"Of the encoder: {', '.join(PRECISIONS)} (automatic mixed precision).", metavar="NAME")
    ] = "float32"
    compile: Annotated[bool, _option("Machine", "Run the encoder through torch.compile.", "--compile")] = False
    channels_last: Annotated[
        bool, _option("Machine", "Lay convolutions out channels last: often faster.", "--channels-last")
    ] = False
    checkpointing: Annotated[
        bool, _option("Machine", "Gradient checkpointing: less memory, more time.", "--checkpointing")
    ] = False
    memory: Annotated[
        float | None,
        _option("Machine", "GiB of images, and of cached targets, past which they lie in a file in the cache folder.",
                min=0.0, show_default="2"),
    ] = None  # fmt: skip


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of a dataclass type are, to typer, an option for each of its fields.

    Typer knows no groups of options; a command takes one all the same, as a whole.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    own = [p for p in inspect.signature(command).parameters.values() if p.name not in groups]
    own = [p.replace(annotation=hints[p.name]) for p in own]
    shared = [_parameter(kind, field) for kind in groups.values() for field in fields(kind)]

    def called(**typed: Any) -> None:
        taken = {name: kind(**{f.name: typed.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**typed, **taken)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__signature__ = inspect.Signature(sorted([*own, *shared], key=lambda p: p.default is not p.empty))
    called.__annotations__ = {p.name: p.annotation for p in called.__signature__.parameters.values()}
    return called


def _parameter(group: type, field: Field) -> inspect.Parameter:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    annotation = get_type_hints(group, include_extras=True)[field.name]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
