"""The work of the commands, after their options have been parsed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from .._utils.distributed import is_first
from ..report import require_drawing
from .evidence import Evidence, leave
from .inputs import Prepared, device_named, prepared_of
from .options import Machine, Sources
from .outcome import outcome_lines
from .place import Place
from .sources_file import keep, kept
from .terminal import Watch, front_table, metric_tables, out, standings_table

if TYPE_CHECKING:
    from ..evidence.record import Sign
    from ..unlearning.epsilons import Epsilon
    from ..unlearning.progress import Callback

__all__ = ["dial_to", "evaluate_run", "prepared_of", "reproduce_to", "show_run", "sweep_to", "unlearn_to"]


def sweep_to(place: Place, prepared: Prepared, points: int, pictures: str, progress: Callback) -> None:
    """Run a sweep with the given number of points between the boundaries, and write it to a folder."""
    from ..models.sharding import Sharded
    from ..unlearning.ability import write_hole
    from ..unlearning.phases import sweep

    require_drawing()  # fail now rather than after the last point
    images = prepared.images
    sweep(
        prepared.model, images.forget, images.retain, task=prepared.task, points=points,
        augment=prepared.augment, held_out=images.held_out, out=place.folder, dataset=prepared.description,
        listed=images.listed, argv=sys.argv, settings=prepared.settings, progress=progress, pictures=pictures,
        resume=place.resume, force=place.force,
    )  # fmt: skip
    if is_first() or isinstance(prepared.model, Sharded):
        write_hole(place.folder, prepared.model, images.forget, prepared.task)


def show_run(folder: Path, sources: Sources, evidence: Evidence | None = None, sign: Sign | None = None) -> None:
    """Write the report and the evidence; print what was asked and reached, and the recommended ε; only the first does.

    Args:
        folder: folder of the run.
        sources: the options that were typed for the run; they are saved in the folder.
        evidence: the options that were typed for the evidence.
        sign: function that signs the evidence.
    """
    from ..report import write_report
    from ..unlearning.recommend import recommend
    from ..unlearning.run_folder import read_run

    if is_first():
        keep(sources, folder)
        page, run = write_report(folder), read_run(folder)
        if run.is_sweep:
            out.print(front_table(run))
            best = recommend(run)
            out.print(f"Recommended: {best.point} (ε = {best.epsilon:.4f}). {escape(best.reason)}", soft_wrap=True)
        for line in outcome_lines(run):
            out.print(line, soft_wrap=True)
        out.print(f"Report: {escape(str(page))}", soft_wrap=True)
        if not run.is_sweep:
            out.print(f"Model: {escape(str(folder / run.points[0].name))}", soft_wrap=True)
        leave(folder, sources, evidence, sign)


def dial_to(run: Path, epsilons: Sequence[Epsilon]) -> None:
    """Add models at other ε to a run and draw its report again."""
    from ..unlearning.ability import write_hole
    from ..unlearning.phases import add_points, refuse_run
    from ..unlearning.run_folder import read_run

    require_drawing()
    refuse_run(read_run(run))
    with Watch() as watch:
        prepared = prepared_of(run, Machine(), watch)
        images = prepared.images
        add_points(
            run, prepared.model, images.forget, images.retain, task=prepared.task, epsilons=epsilons,
            held_out=images.held_out, augment=prepared.augment, settings=prepared.settings, progress=watch,
        )  # fmt: skip
    write_hole(run, prepared.model, images.forget, prepared.task)
    show_run(run, kept(run))


def evaluate_run(run: Path, names: Sequence[str], part: str, limit: int | None) -> None:
    """Evaluate every model of a run with the named extractors, and print the results."""
    from ..metrics import evaluate, load_extractor
    from ..unlearning.hole import where
    from ..unlearning.run_folder import read_run

    read_run(run)  # fail now rather than after the extractors are loaded
    with out.status("extractors", spinner="line"):
        extractors = [load_extractor(name) for name in names]
    with Watch() as watch:
        prepared = prepared_of(run, Machine(), watch)
    with out.status("", spinner="line") as status:
        rows = evaluate(
            run, prepared.model, prepared.images, task=prepared.task, extractors=extractors, part=part, limit=limit,
            progress=status.update,
        )  # fmt: skip
    for table in metric_tables(rows, where(prepared.task)):
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


def unlearn_to(
    place: Place, prepared: Prepared, epsilons: Mapping[str, Epsilon], pictures: str, progress: Callback
) -> None:
    """Train one model to the ε of each request, and write it to a folder."""
    from ..data.sets import VALIDATION
    from ..unlearning.single import unlearn

    require_drawing()  # fail now rather than at the end
    images = prepared.images
    held_out = (images.to_forget(VALIDATION), images.retain_validation) if len(images.forget_validation) else None
    unlearn(
        prepared.model, images.to_forget(), images.retain, task=prepared.task, epsilon=epsilons,
        after=prepared.earlier, held_out=held_out, augment=prepared.augment, out=place.folder,
        dataset=prepared.description, listed=images.listed, argv=sys.argv, settings=prepared.settings,
        progress=progress, pictures=pictures, resume=place.resume, force=place.force,
    )  # fmt: skip
