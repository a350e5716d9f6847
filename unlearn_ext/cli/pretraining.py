"""The command `pretrain`: train a family's small model on built-in images or on the user's photographs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .._utils.atomic_io import save_folder
from .._utils.distributed import first_alone, is_first
from .._utils.hub import expanded
from .ability import say_ability
from .images import built_in
from .inputs import keep_apart
from .model_folder import check_model_folder
from .options import Seed, Small, Sources, unfolded
from .terminal import Watch, out, together

if TYPE_CHECKING:
    import torch

    from ..unlearning.progress import Callback

__all__ = ["pretrain"]


def _option(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Your photographs", **more)


@dataclass(frozen=True)
class Photographs:
    """Options for the user's photographs and for the size of the model."""

    data_dir: Annotated[
        Path | None,
        _option("Folder of your photographs, with a sub-folder per class or person, as for `sweep`."),
    ] = None
    size: Annotated[
        int | None,
        _option("Side of the images in pixels.", min=1, show_default="32, for diffusion 16"),
    ] = None
    channels: Annotated[
        int | None,
        _option("1 for grey, 3 for RGB.", show_default="3 if a photograph has a colour, else 1"),
    ] = None
    steps: Annotated[
        int | None, _option("Optimizer steps.", min=1, show_default="those of the family's small model")
    ] = None
    validation: Annotated[
        float,
        _option("Fraction of your photographs that is not trained on, to measure the model.", min=0.0, max=0.9),
    ] = 0.1
    skip_bad: Annotated[bool, _option("Skip images that cannot be read.", "--skip-bad")] = False


@unfolded
def pretrain(
    small: Small,
    photographs: Photographs,
    seed: Seed = 0,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder to write the model to.",
            show_default="a folder in the cache",
            callback=lambda path: path and expanded(path),
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier model in --out.")] = False,
) -> None:
    """Train a family's small model in a few minutes, on built-in images or on your own photographs.

    Prints the model's folder, which can be given as `--model`. `sweep` and `run` without `--model` use the same model
    for built-in images. For your photographs, a line says how well the model fills in what the task hides.

    For example:

    - `unlearn-ext pretrain --family mae --data fashion-mnist`

    - `unlearn-ext pretrain --data-dir photos/ --out models/photos`
    """
    _check(small, photographs)
    if out_:
        keep_apart(out_, Sources(data_dir=photographs.data_dir))
        check_model_folder(out_, force)
    with together():
        with Watch() as watch, first_alone():
            folder = _trained(small, photographs, seed, out_, watch)
        out.print(f"Model: {escape(str(folder))}", soft_wrap=True)


def _check(small: Small, photographs: Photographs) -> None:
    """Reject combinations of options that contradict each other."""
    if photographs.channels not in (None, 1, 3):
        raise typer.BadParameter(f"--channels must be 1 for grey or 3 for RGB, not {photographs.channels}.")
    if photographs.data_dir is None:
        if photographs.channels or photographs.skip_bad:
            raise typer.BadParameter("--channels and --skip-bad are for your own photographs: give --data-dir.")
        return
    if small.data:
        raise typer.BadParameter("give one of --data and --data-dir.")
    if small.forget_classes:
        raise typer.BadParameter("a model is trained on all classes of --data-dir: leave out --forget-classes.")


def _trained(small: Small, photographs: Photographs, seed: int, out_: Path | None, progress: Callback) -> Path:
    """Train the model, save it in a folder or in the cache, and return its folder."""
    from ..models import load
    from ..pretrain import cached, recipe_of, train
    from ..tasks import parse

    task, recipe = parse(small.task), recipe_of(small.family)()
    recipe = replace(recipe, steps=photographs.steps or recipe.steps)
    size = photographs.size or recipe_of(small.family).size
    recipe.check_size(size)
    images, held_out = _images(small, photographs, size, seed)
    if out_ is None:
        folder = cached(small.family, images, task, seed=seed, recipe=recipe, progress=progress)
    elif is_first():
        save_folder(out_, train(images, task, seed, recipe, progress).save_pretrained, replace=True)
        folder = out_
    else:
        return out_
    if photographs.data_dir and is_first():
        sets = {"images trained on": images, "images held out": held_out}
        say_ability(load(small.family, folder), task, sets, "train longer (--steps), or at another size (--size)")
    return folder


def _images(small: Small, photographs: Photographs, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images to train on, and those that are held out."""
    import torch

    from .. import data

    if photographs.data_dir is None:
        images, _ = built_in(small, seed, size)
        held_out = torch.cat([images.forget_validation, images.retain_validation])
        return torch.cat([images.forget, images.retain]), held_out
    photos = data.load_images(
        photographs.data_dir, size=size, channels=photographs.channels, skip_bad=photographs.skip_bad
    )
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(seed))
    taken = len(photos) - min(round(photographs.validation * len(photos)), len(photos) - 1)
    kinds = "grey" if photos.shape[1] == 1 else "RGB"
    where = escape(str(photographs.data_dir))
    out.print(f"{where}: {taken} {kinds} images to train on, {len(photos) - taken} held out", soft_wrap=True)
    return photos[order[:taken]], photos[order[taken:]]
