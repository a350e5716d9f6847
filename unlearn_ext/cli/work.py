"""What the commands do once they know what to do it with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ..errors import require
from .inputs import Problem, Sources, prepare
from .terminal import Watch, front_table, metric_tables, out, outcome_table

if TYPE_CHECKING:
    from ..progress import Callback
    from ..run import Settings


def sweep_to(folder: Path, problem: Problem, points: int, settings: Settings, progress: Callback) -> None:
    """The whole front into a folder."""
    from ..phases import sweep

    for module in ("matplotlib", "jinja2"):
        require(module, extra="report")  # better now than after the last point
    images = problem.images
    sweep(
        problem.model, images.forget, images.retain, task=problem.task, points=points,
        held_out=(images.forget_validation, images.retain_validation), out=folder, dataset=problem.description,
        settings=settings, progress=progress,
    )  # fmt: skip


def show_run(folder: Path) -> None:
    """Draw the report, and say in a table what was asked and reached."""
    from ..report import write_report
    from ..report.run_folder import read_run

    page = write_report(folder)
    out.print(front_table(read_run(folder)))
    out.print(f"Report: {escape(str(page))}", soft_wrap=True)


def evaluate_run(run: Path, names: Sequence[str], limit: int | None) -> None:
    """Judge every model of a run by the extractors named, and show what they say."""
    from ..metrics import evaluate, load_extractor
    from ..report.run_folder import read_run

    seed = read_run(run).metrics["seed"]
    with out.status("extractors"):
        extractors = [load_extractor(name) for name in names]
    with Watch() as watch:
        problem = prepare(Sources.read(run), seed, watch)
    with out.status("") as status:
        rows = evaluate(
            run, problem.model, problem.images, task=problem.task, extractors=extractors, limit=limit,
            progress=status.update,
        )  # fmt: skip
    for table in metric_tables(rows):
        out.print(table)
    out.print(f"Table: {escape(str(run / 'metrics.csv'))}", soft_wrap=True)


def unlearn_to(
    folder: Path, problem: Problem, epsilon: float, settings: Settings, progress: Callback
) -> tuple[Table, Path]:
    """One model at one ε into a folder of its name; what it reached, and where it lies."""
    from ..objectives import Objectives
    from ..parallel import is_first
    from ..unlearn import point_name, unlearn

    images, task = problem.images, problem.task
    training = Objectives.freeze(problem.model, images.forget, images.retain, task, seed=settings.seed)
    validation = training.held_out(problem.model, images.forget_validation, images.retain_validation, task)
    before = {"training": training.evaluate(problem.model), "validation": validation.evaluate(problem.model)}
    unlearned = unlearn(
        problem.model, images.forget, images.retain, task=task, epsilon=epsilon, settings=settings, progress=progress
    )
    after = {"training": training.evaluate(unlearned), "validation": validation.evaluate(unlearned)}
    place = folder / point_name(epsilon)
    if is_first():
        unlearned.save_pretrained(place)
    return outcome_table(epsilon, before, after), place
