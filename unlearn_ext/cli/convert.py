"""The command `convert`: write a checkpoint file as a folder of the model's library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .._utils.atomic_io import save_folder
from .._utils.hub import expanded
from .inputs import recognised
from .model_folder import check_model_folder
from .options import ModelConfig, Sources
from .terminal import out

__all__ = ["convert"]


def convert(
    file: Annotated[Path, typer.Argument(help="Checkpoint file: .pth, .ckpt or .safetensors.", callback=expanded)],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the model to.", callback=expanded)],
    model_config: ModelConfig = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that was written earlier.")] = False,
) -> None:
    """Convert a checkpoint file to a folder that the model's library loads with `from_pretrained`.

    The format is recognised by the weights in the file. Nothing that the file contains is executed. `sweep` and `run`
    take the file itself as well.

    Example: `unlearn-ext convert mae_visualize_vit_large.pth models/mae-large`
    """
    from .. import models

    if not file.is_file():
        why = f"{file} is a folder; only files are converted." if file.is_dir() else f"there is no file {file}."
        raise typer.BadParameter(why, param_hint="'FILE'")
    check_model_folder(folder, force)
    sources = recognised(Sources(model=str(file), model_config=model_config))
    if sources.model_config:
        out.print(f"Configuration of the model: {escape(str(sources.model_config))}", soft_wrap=True)
    model = models.load(sources.family, file, sources.model_config)
    save_folder(folder, model.save_pretrained, replace=True)
    out.print(f"Model of family {model.family}: {escape(str(folder))}", soft_wrap=True)
