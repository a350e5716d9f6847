"""The command `export`: copy one model of a run out of its folder, with a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .._utils.atomic_io import RECORD, save_folder, saved_files, write_text
from .._utils.hub import expanded
from ..errors import UserError
from .model_folder import check_model_folder
from .original import Original
from .terminal import out

__all__ = ["FORMATS", "export"]

FORMATS = LIBRARY, ORIGINAL = "library", "original"


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `sweep`, `run` or `demo` wrote.", callback=expanded)],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the model to.", callback=expanded)],
    point: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the model, such as eps-0.3000.", show_default="the recommended one"),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="library: a folder for `from_pretrained`; original: a safetensors file with the layout of the "
            "checkpoint file that the run began with.",
        ),
    ] = LIBRARY,
    names: Annotated[bool, typer.Option("--names", help="Name the requests in the model card.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that was exported earlier.")] = False,
) -> None:
    """Copy one model of a run to a folder of its own, with a model card: a README.md that the Hugging Face hub reads.

    The model loads with its own library's `from_pretrained`, or with `--format original` in the program that the
    checkpoint file of the run came from; an adapter is merged into its weights. The card says which ε was asked and
    reached, and what is not promised. It names no file, class or person. Fill in the licence before you publish it.

    For example:

    - `unlearn-ext export runs/mine models/unlearned`

    - `unlearn-ext export runs/mine models/unlearned --point eps-0.3000`

    - `unlearn-ext export runs/mine models/unlearned --format original`
    """
    from ..models import load
    from ..models.adapters import has_adapter
    from ..unlearning.model_card import model_card
    from ..unlearning.recommend import recommend
    from ..unlearning.run_folder import read_run

    if format not in FORMATS:
        raise typer.BadParameter(f"there is no format {format}; there are {' and '.join(FORMATS)}.")
    finished = read_run(run)
    _keep_apart(run, folder)
    check_model_folder(folder, force)
    by_name = {one.name: one for one in finished.points}
    if point is None:
        best = recommend(finished)
        point = best.point
        out.print(f"Recommended: {point}. {escape(best.reason)}", soft_wrap=True)
    if point not in by_name:
        raise UserError(f"there is no model {point} in {run}; there are {', '.join(by_name)}.")
    original = Original(run) if format == ORIGINAL else None
    card = model_card(finished, by_name[point], names=names, file=original.name if original else None)
    files = _model_files(run / point)
    adapted = has_adapter(run / point)

    def save(place: Path) -> None:
        if original:
            original.save(point, place)
        elif adapted:
            load(str(finished.metrics["family"]), run / point).save_pretrained(place)
        else:
            for file in files:
                copy = place / file.relative_to(run / point)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        write_text(place / "README.md", card)

    save_folder(folder, save, replace=True)
    out.print(f"Model: {escape(str(folder))}", soft_wrap=True)


def _keep_apart(run: Path, folder: Path) -> None:
    """Raise ``UserError`` if the model would be written into its run, or in place of it."""
    read, written = run.resolve(), folder.resolve()
    if read == written or read in written.parents or written in read.parents:
        raise UserError(f"{folder} and the run {run} are the same folder or one contains the other: choose another.")


def _model_files(folder: Path) -> list[Path]:
    """Return the files of a model, without those that a user has put beside them.

    Raises:
        UserError: there is no model.
    """
    files = [file for file in sorted(saved_files(folder) or ()) if file.name != RECORD and file.is_file()]
    if not files:
        raise UserError(f"{folder} contains no model that a run wrote.")
    return files
