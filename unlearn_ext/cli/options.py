"""The options that several commands share, each group as a dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .._utils.hub import expanded
from ..data.augment import KNOWN as AUGMENTATIONS
from ..models import FAMILIES
from ..unlearning.pictures import CHOICES
from ..unlearning.settings import PRECISIONS

__all__ = ["Device", "Family", "Machine", "ModelConfig", "Pictures", "Seed", "Small", "Sources", "Training", "unfolded"]


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Family = Annotated[str, _option("Model", f"Kind of model: {', '.join(FAMILIES)}.", metavar="FAMILY")]


ModelConfig = Annotated[
    Path | None,
    _option("Model", "Configuration of a checkpoint file, YAML or JSON.", metavar="FILE",
            show_default="the one beside it, if there is one", callback=lambda path: path and expanded(path)),
]  # fmt: skip


Seed = Annotated[int, _option("Training", "Random seed.")]


Device = Annotated[
    str | None,
    _option("Machine", "Device, as in torch: cpu, cuda, cuda:1, mps.", show_default="a GPU if there is one"),
]


Pictures = Annotated[
    str,
    _option("Pictures", f"Pictures to save and to show: {', '.join(CHOICES)}. With blurred, images to forget are "
            "blurred irreversibly; with retain, they are left out.", metavar="CHOICE"),
]  # fmt: skip


@dataclass(frozen=True)
class Small:
    """Options for built-in images, the task, and the family of the small model."""

    data: Annotated[
        str | None,
        _option("Images", "Built-in images: mnist (no download needed) or fashion-mnist.", show_default="mnist"),
    ] = None
    forget_classes: Annotated[
        str | None,
        _option("Images", "Classes to forget, separated by commas: labels of the built-in images, names of "
                "sub-folders or of a data set's classes. Names may contain commas.", metavar="CLASSES",
                show_default="0,1 of the built-in images"),
    ] = None  # fmt: skip
    task: Annotated[
        str,
        _option("Images", "What is hidden from the model: center-crop:F, outpaint:F (the fraction F of a side is "
                "kept), random-mask:F, or reconstruct (nothing is hidden).", metavar="TASK"),
    ] = "center-crop:0.5"  # fmt: skip
    family: Family = "vqgan"


@dataclass(frozen=True)
class Sources(Small):
    """Options for images, task and model."""

    data_dir: Annotated[Path | None, _option("Images", "Folder of your own images, a sub-folder per class.")] = None
    forget: Annotated[
        list[str],
        _option("Images", "Folder of your own images to forget; several requests as NAME=DIR, repeated.",
                metavar="[NAME=]DIR", show_default="none"),
    ] = field(default_factory=list)  # fmt: skip
    retain: Annotated[Path | None, _option("Images", "Folder of your own images to retain.")] = None
    validation: Annotated[
        float,
        _option("Images", "Fraction of the images of each set that is held out for validation; 0 trains on all.",
                metavar="F"),
    ] = 0.2  # fmt: skip
    dataset: Annotated[
        str | None,
        _option(
            "Images",
            "Data set for the library Hugging Face datasets: a folder, or a hub id (name or owner/name).",
            metavar="DIR",
        ),
    ] = None
    split: Annotated[str, _option("Images", "Split of --dataset.")] = "train"
    image_column: Annotated[
        str | None, _option("Images", "Image column of --dataset.", metavar="NAME", show_default="its only one")
    ] = None
    label_column: Annotated[
        str | None, _option("Images", "Class column of --dataset.", metavar="NAME", show_default="its only one")
    ] = None
    prompt_column: Annotated[
        str | None, _option("Images", "Column of --dataset with the prompts.", metavar="NAME", show_default="none")
    ] = None
    prompt: Annotated[
        str | None,
        _option("Images", "Prompt of every image without its own, for latent-diffusion. A text file beside an image, "
                "lion.txt beside lion.png, is its own prompt.", metavar="TEXT", show_default="an empty prompt"),
    ] = None  # fmt: skip
    skip_bad: Annotated[bool, _option("Images", "Skip images that cannot be read.", "--skip-bad")] = False
    augment: Annotated[
        list[str],
        _option("Images", f"Augmentation of training images: {', '.join(AUGMENTATIONS)}; can be repeated. "
                "The unmodified model then runs in every step, which is slower.", metavar="NAME", show_default="none"),
    ] = field(default_factory=list)  # fmt: skip
    model: Annotated[
        str | None,
        _option("Model", "Checkpoint: a folder that save_pretrained wrote, a .pth, .ckpt or .safetensors file, or a "
                "Hugging Face hub id, owner/name.", metavar="MODEL",
                show_default="a small model, trained once and cached"),
    ] = None  # fmt: skip
    model_config: ModelConfig = None
    family: Annotated[
        str,
        _option("Model", f"Kind of model: {', '.join(FAMILIES)}.", metavar="FAMILY",
                show_default="that of --model; without it vqgan"),
    ] = ""  # fmt: skip


@dataclass(frozen=True)
class Training:
    """Options for training. The defaults suit the small built-in models."""

    seed: Seed = 0
    steps: Annotated[
        int | None,
        _option("Training", "Optimizer steps per anchor of a sweep; `run` takes three times as many.", min=1,
                show_default="depends on the number of images"),
    ] = None  # fmt: skip
    batch_size: Annotated[int | None, _option("Training", "Images per minibatch, from each set.", min=1)] = None
    lr: Annotated[float | None, _option("Training", "Learning rate.")] = None
    sharpness: Annotated[
        float,
        _option("Training", "Radius ρ in weight space within which forgetting is enforced, so that further training "
                "brings back less. Start with 0.05; damage grows with ρ, and 0 is off.", min=0.0),
    ] = 0.0  # fmt: skip
    lora: Annotated[
        int | None,
        _option("Training", "Train a low-rank adapter (LoRA) of the encoder instead of its weights: less memory, and "
                "small files. 16 is a usual rank.", metavar="RANK", min=1, show_default="the encoder is trained"),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Options for the device, precision and memory."""

    device: Device = None
    precision: Annotated[
        str, _option("Machine", f"Encoder precision: {', '.join(PRECISIONS)} (mixed precision).", metavar="NAME")
    ] = "float32"
    compile: Annotated[bool, _option("Machine", "Compile the encoder with torch.compile.", "--compile")] = False
    channels_last: Annotated[
        bool, _option("Machine", "Use the channels-last memory format, which is often faster.", "--channels-last")
    ] = False
    checkpointing: Annotated[
        bool, _option("Machine", "Use gradient checkpointing: less memory, more time.", "--checkpointing")
    ] = False
    fsdp: Annotated[
        bool,
        _option("Machine", "Divide the model's weights among the processes that torchrun started (FSDP2), for models "
                "larger than a device.", "--fsdp"),
    ] = False  # fmt: skip
    memory: Annotated[
        float | None,
        _option("Machine", "GiB of images, and of cached targets, to keep in memory; beyond that, a file is used.",
                min=0.0, show_default="2"),
    ] = None  # fmt: skip


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter of a dataclass type by one typer option per field of the dataclass.

    Typer has no groups of options. With this decorator, a command takes a group of options as one parameter.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    own = [p for p in inspect.signature(command).parameters.values() if p.name not in groups]
    own = [p.replace(annotation=hints[p.name]) for p in own]
    shared = [_parameter(kind, field) for kind in groups.values() for field in fields(kind)]

    def called(**typed: Any) -> None:
        taken = {name: kind(**{f.name: typed.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**typed, **taken)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    signature = inspect.Signature(sorted([*own, *shared], key=lambda p: p.default is not p.empty))
    called.__signature__ = signature  # type: ignore[attr-defined]  # PEP 362; unknown to typeshed
    called.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return called


def _parameter(group: type, field: Field) -> inspect.Parameter:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    annotation = get_type_hints(group, include_extras=True)[field.name]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
