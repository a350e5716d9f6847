"""The commands: thin words around `unlearn_ext`'s own functions, and one place where errors become sentences."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from ..errors import UserError
from ..models import FAMILIES
from . import work
from .inputs import Problem, Sources, describe, prepare, settings
from .terminal import Watch, err, facts_table, hush, out, plain_warnings

_UsageError = typer.BadParameter.__base__  # typer's own or click's, by typer's release


class _Commands(TyperGroup):
    """Turns every way to fail into an exit code and one sentence."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Take `--debug` wherever it was typed."""
        return super().parse_args(ctx, sorted(args, key=lambda arg: arg != "--debug"))

    def invoke(self, ctx: typer.Context) -> Any:
        """Run a command: 0 it worked, 1 it could not, 2 it was asked wrongly, 130 it was interrupted."""
        try:
            with plain_warnings():
                return super().invoke(ctx)
        except (_UsageError, typer.Exit):
            raise
        except (KeyboardInterrupt, typer.Abort):
            err.print("Stopped.")
            raise typer.Exit(130) from None
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            elif isinstance(error, UserError):
                err.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
            else:
                said = " ".join(f"{type(error).__name__}: {error}".split())
                err.print(f"[red]Error:[/] {escape(said)} (use --debug for the traceback)", soft_wrap=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[
    str | None,
    typer.Option(help="Built-in images: mnist (needs no network) or fashion-mnist.", rich_help_panel="Images",
                 show_default="mnist"),
]  # fmt: skip
DataDir = Annotated[
    Path | None, typer.Option(help="Your own images, a folder with a sub-folder a class.", rich_help_panel="Images")
]
ForgetClasses = Annotated[
    str | None,
    typer.Option(metavar="CLASSES", help="What to forget: labels of the built-in images, or sub-folders' names.",
                 rich_help_panel="Images", show_default="0,1 of the built-in images"),
]  # fmt: skip
Forget = Annotated[Path | None, typer.Option(help="Your own images to forget, a folder.", rich_help_panel="Images")]
Retain = Annotated[Path | None, typer.Option(help="Your own images to retain, a folder.", rich_help_panel="Images")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.", rich_help_panel="Images")
]
Task = Annotated[
    str,
    typer.Option(
        metavar="TASK", rich_help_panel="Images",
        help="What is hidden from the model: center-crop:F, outpaint:F (F of a side is kept), random-mask:F or "
        "reconstruct (nothing).",
    ),
]  # fmt: skip
Family = Annotated[
    str, typer.Option(help=f"Kind of model: {', '.join(FAMILIES)}.", metavar="FAMILY", rich_help_panel="Model")
]
Model = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Checkpoint, a folder or hub id.", rich_help_panel="Model",
                 show_default="a small one, trained once and cached"),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", help="Folder to write the run to.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps a model.", show_default="what suits the small model")]
Rate = Annotated[float | None, typer.Option(help="Learning rate.", show_default="what suits the small model")]
Points = Annotated[int, typer.Option(min=1, help="How many ε between the boundaries.")]


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="UNLEARN_EXT_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """**Machine unlearning that its user can steer.** ε says how much to forget: the smaller, the more.

    Begin with `unlearn-ext demo`. Every command explains itself: `unlearn-ext sweep --help`.

    Exit codes: 0 done, 1 could not be done, 2 wrongly asked, 130 interrupted.
    """


@app.command()
def demo(out_: Out = Path("runs/demo"), family: Family = "vqgan") -> None:
    """Everything, on built-in images: train a small model, find both boundaries, walk between them, draw the report.

    The trained model is cached: the second demo is quicker.

    Examples:

    - `unlearn-ext demo --out runs/demo`

    - `unlearn-ext demo --family diffusion --out runs/diffusion`
    """
    from .. import demo as chosen
    from ..parallel import refuse_several

    refuse_several("demo")
    with Watch() as watch:
        model, images = chosen.prepare(family, watch)
        problem = Problem(model, images, chosen.TASK, describe(images.name, chosen.FORGET_CLASSES))
        work.sweep_to(out_, problem, chosen.POINTS, chosen.SETTINGS[family], watch)
    work.show_run(out_)


@app.command()
def pretrain(
    family: Family = "vqgan",
    data: Data = None,
    forget_classes: ForgetClasses = None,
    task: Task = "center-crop:0.5",
    seed: Seed = 0,
) -> None:
    """The small model of a family for built-in images, trained in a few minutes, or found in the cache.

    It prints the folder, which `--model` takes. `sweep` and `run` without `--model` use the same one.

    Example: `unlearn-ext pretrain --family mae --data fashion-mnist`
    """
    from ..parallel import refuse_several
    from ..pretrain import pretrained
    from ..tasks import parse

    refuse_several("pretrain")
    sources = Sources(data, None, forget_classes, None, None, False, task, family, None)
    with Watch() as watch:
        images, _ = sources.built_in(seed)
        folder = pretrained(family, images, parse(task), seed=seed, progress=watch)
    out.print(f"Model: {escape(str(folder))}", soft_wrap=True)


@app.command()
def sweep(
    out_: Out = Path("runs/sweep"),
    points: Points = 9,
    data: Data = None,
    data_dir: DataDir = None,
    forget_classes: ForgetClasses = None,
    forget: Forget = None,
    retain: Retain = None,
    skip_bad: SkipBad = False,
    task: Task = "center-crop:0.5",
    family: Family = "vqgan",
    model: Model = None,
    seed: Seed = 0,
    steps: Steps = None,
    lr: Rate = None,
) -> None:
    """The whole Pareto front: both boundaries, and models at ε spaced evenly between them.

    Examples:

    - `unlearn-ext sweep --data fashion-mnist --forget-classes 0,6 --points 5`

    - `unlearn-ext sweep --forget ours/ --retain theirs/ --model checkpoint/ --out runs/mine`

    - `unlearn-ext sweep --data-dir photos/ --forget-classes cat,dog --model checkpoint/ --out runs/mine`
    """
    from ..parallel import refuse_several

    refuse_several("sweep")
    sources = Sources(data, data_dir, forget_classes, forget, retain, skip_bad, task, family, model)
    with Watch() as watch:
        work.sweep_to(out_, prepare(sources, seed, watch), points, settings(seed, steps, lr), watch)
    work.show_run(out_)


@app.command()
def run(
    epsilon: Annotated[float, typer.Option(min=0.0, help="f1 to reach; the smaller, the more is forgotten.")],
    out_: Out = Path("runs/run"),
    data: Data = None,
    data_dir: DataDir = None,
    forget_classes: ForgetClasses = None,
    forget: Forget = None,
    retain: Retain = None,
    skip_bad: SkipBad = False,
    task: Task = "center-crop:0.5",
    family: Family = "vqgan",
    model: Model = None,
    seed: Seed = 0,
    steps: Steps = None,
    lr: Rate = None,
) -> None:
    """One model, at one ε. Where you do not know which ε you want, `sweep` shows what each would cost.

    Examples:

    - `unlearn-ext run --epsilon 0.3 --data mnist --forget-classes 3,8`

    - `unlearn-ext run --epsilon 0.1 --forget ours/ --retain theirs/ --model checkpoint/ --out runs/mine`

    - `torchrun --nproc-per-node 2 -m unlearn_ext run --epsilon 0.3` divides every minibatch between two processes.
    """
    from .. import parallel

    sources = Sources(data, data_dir, forget_classes, forget, retain, skip_bad, task, family, model)
    with parallel.joined():
        if not parallel.is_first():
            hush()
        with Watch() as watch:
            with parallel.first_alone():
                problem = prepare(sources, seed, watch)
            table, folder = work.unlearn_to(out_, problem, epsilon, settings(seed, steps, lr), watch)
        out.print(table)
        out.print(f"Model: {escape(str(folder))}", soft_wrap=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder that a run was written to.")]) -> None:
    """Draw a run's report again: `report.html`, one file to send to anybody, and `figures/`.

    Example: `unlearn-ext report runs/demo`
    """
    from ..report import write_report

    out.print(f"Report: {escape(str(write_report(run)))}", soft_wrap=True)


@app.command()
def info() -> None:
    """What was built, what was found, and why a path is not taken."""
    import unlearn_ext

    out.print(facts_table("unlearn_ext", unlearn_ext.build_info()))
