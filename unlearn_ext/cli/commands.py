"""The work of the commands, after their options have been parsed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .._utils.atomic_io import save_folder
from .._utils.distributed import is_first
from ..report import require_drawing
from .inputs import Prepared, device_named, prepare
from .options import Machine, Sources, Training
from .place import Place
from .sources_file import keep, kept
from .terminal import Watch, front_table, metric_tables, out, outcome_table, standings_table

if TYPE_CHECKING:
    from ..unlearning.progress import Callback

__all__ = ["dial_to", "evaluate_run", "reproduce_to", "show_run", "sweep_to", "unlearn_to"]


def sweep_to(place: Place, prepared: Prepared, points: int, pictures: str, progress: Callback) -> None:
    """Run a sweep with the given number of points between the boundaries, and write it to a folder."""
    from ..unlearning.phases import sweep

    require_drawing()  # fail now rather than after the last point
    images = prepared.images
    sweep(
        prepared.model, images.forget, images.retain, task=prepared.task, points=points,
        augment=prepared.augment,
        held_out=(images.forget_validation, images.retain_validation), out=place.folder, dataset=prepared.description,
        settings=prepared.settings, progress=progress, pictures=pictures, resume=place.resume, force=place.force,
    )  # fmt: skip


def show_run(folder: Path, sources: Sources) -> None:
    """Write the report and print a table of the ε asked and the f1 reached; only the first process does.

    Args:
        folder: folder of the run.
        sources: the options that were typed for the run; they are saved in the folder.
    """
    from ..report import write_report
    from ..unlearning.run_folder import read_run

    if is_first():
        keep(sources, folder)
        page = write_report(folder)
        out.print(front_table(read_run(folder)))
        out.print(f"Report: {escape(str(page))}", soft_wrap=True)


def dial_to(run: Path, epsilons: Sequence[float]) -> None:
    """Add models at other ε to a run and draw its report again."""
    from ..unlearning.phases import add_points
    from ..unlearning.run_folder import read_run
    from ..unlearning.settings import Settings

    require_drawing()
    metrics = read_run(run).metrics
    settings = Settings(**metrics["settings"])
    with Watch() as watch:
        prepared = prepare(kept(run), Training(seed=settings.seed), Machine(), watch)
        images = prepared.images
        add_points(
            run, prepared.model, images.forget, images.retain, task=prepared.task, epsilons=epsilons,
            held_out=(images.forget_validation, images.retain_validation), augment=prepared.augment, settings=settings,
            progress=watch,
        )  # fmt: skip
    show_run(run, kept(run))


def evaluate_run(run: Path, names: Sequence[str], limit: int | None) -> None:
    """Evaluate every model of a run with the named extractors, and print the results."""
    from ..metrics import evaluate, load_extractor
    from ..unlearning.run_folder import read_run

    training = Training(seed=read_run(run).metrics["seed"])
    with out.status("extractors", spinner="line"):
        extractors = [load_extractor(name) for name in names]
    with Watch() as watch:
        prepared = prepare(kept(run), training, Machine(), watch)
    with out.status("", spinner="line") as status:
        rows = evaluate(
            run, prepared.model, prepared.images, task=prepared.task, extractors=extractors, limit=limit,
            progress=status.update,
        )  # fmt: skip
    for table in metric_tables(rows):
        out.print(table)
    out.print(f"Table: {escape(str(run / 'metrics.csv'))}", soft_wrap=True)


def reproduce_to(
    folder: Path, family: str, seeds: int | None, quick: bool, jobs: int | None, device: str | None
) -> None:
    """Run our method and every baseline, and write the page that compares them."""
    from ..report import require_judging, write_reproduction
    from ..reproduction import FAMILIES, FULL, QUICK, cores, judge, reproduce, standings

    require_drawing()
    require_judging()
    families, plan = FAMILIES if family == "all" else (family,), QUICK if quick else FULL
    processes, chosen = jobs or cores(), device_named(device)
    with Watch() as watch:
        rows, costs = reproduce(
            folder, families=families, seeds=seeds, plan=plan, progress=watch, jobs=processes, device=chosen,
        )  # fmt: skip
    with out.status("quality of the pictures", spinner="line") as status:
        judge(folder, progress=status.update)
    for name in families:
        mine = [row for row in rows if row.family == name]
        out.print(standings_table(name, standings(mine), {c.method: c for c in costs if c.family == name}))
    out.print(f"Report: {escape(str(write_reproduction(folder)))}", soft_wrap=True)


def unlearn_to(place: Place, prepared: Prepared, epsilon: float, progress: Callback) -> list[Table]:
    """Train one model at one ε and write it; return a table of what it reached, or no table if the run was finished."""
    from ..unlearning.encoder import Encoder
    from ..unlearning.identity import identity
    from ..unlearning.journal import journal
    from ..unlearning.objectives import Objectives
    from ..unlearning.single import reach

    images, settings = prepared.images, prepared.settings
    sets = {"forget": images.forget, "retain": images.retain}
    run = identity(prepared.model, sets, prepared.task, prepared.augment, settings, **place.asked)
    with journal(place.folder, place.outputs, run, resume=place.resume, force=place.force) as kept:
        if kept.finished:
            warnings.warn(f"the run in {place.result} is finished: nothing is left to do.", stacklevel=2)
            return []
        training = Objectives.freeze(
            prepared.model, images.forget, images.retain, prepared.task, augment=prepared.augment, settings=settings
        )
        validation = training.held_out(images.forget_validation, images.retain_validation)
        unlearned = reach(epsilon, prepared.model, training, progress=progress, journal=kept)
        encode = Encoder(unlearned, settings)
        before, after = (
            {"training": training.evaluate(e), "validation": validation.evaluate(e)} for e in (training.frozen, encode)
        )
        if is_first():
            save_folder(place.result, unlearned.save_pretrained, replace=True)
        kept.finish()
    return [outcome_table(epsilon, before, after)]
