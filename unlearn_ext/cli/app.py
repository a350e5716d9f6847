"""The commands: thin words around `unlearn_ext`'s own functions, and one place where errors become sentences."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from .._utils.distributed import FirstFailed, first_alone
from ..errors import UserError
from . import commands
from .inputs import Problem, built_in, describe, keep_apart, prepare
from .options import Device, Family, Machine, Seed, Small, Sources, Training, unfolded
from .place import Place
from .terminal import Watch, err, facts_table, out, plain_warnings, together

__all__ = [
    "Epsilon",
    "Force",
    "Out",
    "Resume",
    "Wanted",
    "app",
    "demo",
    "dial",
    "evaluate",
    "info",
    "options",
    "pretrain",
    "report",
    "reproduce",
    "run",
    "sweep",
]

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
            elif isinstance(error, FirstFailed):
                pass
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

Out = Annotated[Path, typer.Option("--out", help="Folder to write the run to.")]
Wanted = Annotated[int, typer.Option("--points", min=1, help="How many ε, spaced evenly between the boundaries.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on where an earlier process of the same command was ended."),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an earlier run in the folder: what it wrote is removed, and no other file."),
]
Epsilon = Annotated[float, typer.Option(min=0.0, help="f1 to reach; the smaller, the more is forgotten.")]


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
def demo(out_: Out = Path("runs/demo"), family: Family = "vqgan", resume: Resume = False, force: Force = False) -> None:
    """Everything, on built-in images: train a small model, unlearn it at several degrees, draw the report.

    The trained model is cached: the second demo is quicker.

    Examples:

    - `unlearn-ext demo --out runs/demo`

    - `unlearn-ext demo --family diffusion --out runs/diffusion`
    """
    from .. import demo as chosen
    from ..models import check_family
    from ..unlearning.identity import known

    check_family(family)
    choice = chosen.CHOICES[family]
    place = Place.of_sweep(out_, choice.points, resume, force)
    with together():
        with Watch() as watch:
            with first_alone():
                place.check(known(family, choice.settings))
                model, images = chosen.prepare(family, watch)
            description = describe(images.name, chosen.FORGET_CLASSES)
            problem = Problem(model, images, chosen.TASK, description, choice.settings)
            commands.sweep_to(place, problem, choice.points, watch)
        classes = ",".join(map(str, chosen.FORGET_CLASSES))
        commands.show_run(out_, Sources(chosen.DATASET, classes, str(chosen.TASK), family))


@app.command()
@unfolded
def pretrain(small: Small, seed: Seed = 0) -> None:
    """The small model of a family for built-in images, trained in a few minutes, or found in the cache.

    It prints the folder, which `--model` takes. `sweep` and `run` without `--model` use the same one.

    Example: `unlearn-ext pretrain --family mae --data fashion-mnist`
    """
    from ..pretrain import pretrained
    from ..tasks import parse

    with together():
        with Watch() as watch, first_alone():
            images, _ = built_in(small, seed)
            folder = pretrained(small.family, images, parse(small.task), seed=seed, progress=watch)
        out.print(f"Model: {escape(str(folder))}", soft_wrap=True)


@app.command()
@unfolded
def sweep(
    sources: Sources,
    training: Training,
    machine: Machine,
    out_: Out = Path("runs/sweep"),
    points: Wanted = 9,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """The whole Pareto front: a few trained models, both boundaries, and models at ε spaced evenly between them.

    Examples:

    - `unlearn-ext sweep --data fashion-mnist --forget-classes 0,6 --points 5`

    - `unlearn-ext sweep --forget ours/ --retain theirs/ --model checkpoint/ --out runs/mine`

    - `unlearn-ext sweep --data-dir photos/ --forget-classes cat,dog --model checkpoint/ --out runs/mine`

    - The same command with `--resume` goes on where this one was killed, with the results of an uninterrupted run.

    - `torchrun --nproc-per-node 2 -m unlearn_ext sweep` divides every minibatch between two processes.
    """
    keep_apart(out_, sources)
    place = Place.of_sweep(out_, points, resume, force)
    with together():
        with Watch() as watch:
            with first_alone():
                problem = prepare(sources, training, machine, watch, place)
            commands.sweep_to(place, problem, points, watch)
        commands.show_run(out_, sources)


@app.command()
@unfolded
def run(
    sources: Sources,
    training: Training,
    machine: Machine,
    epsilon: Epsilon,
    out_: Out = Path("runs/run"),
    resume: Resume = False,
    force: Force = False,
) -> None:
    """One model, at one ε. Where you do not know which ε you want, `sweep` shows what each would cost.

    Examples:

    - `unlearn-ext run --epsilon 0.3 --data mnist --forget-classes 3,8`

    - `unlearn-ext run --epsilon 0.1 --forget ours/ --retain theirs/ --model checkpoint/ --out runs/mine`

    - `torchrun --nproc-per-node 2 -m unlearn_ext run --epsilon 0.3` divides every minibatch between two processes.
    """
    keep_apart(out_, sources)
    place = Place.of_run(out_, epsilon, resume, force)
    with together():
        with Watch() as watch:
            with first_alone():
                problem = prepare(sources, training, machine, watch, place)
            tables = commands.unlearn_to(place, problem, epsilon, watch)
        for table in tables:
            out.print(table)
        out.print(f"Model: {escape(str(place.result))}", soft_wrap=True)


@app.command()
def dial(
    run: Annotated[Path, typer.Argument(help="Folder that `sweep` or `demo` wrote.")],
    epsilon: Annotated[
        list[float], typer.Option(min=0.0, help="f1 to reach; the smaller, the more is forgotten. May be given again.")
    ],
) -> None:
    """A model at any other ε, in seconds, from the models of a sweep; it joins the run and its report.

    It lies on a straight line between two of them, and is trained only where no line is good enough.

    Example: `unlearn-ext dial runs/demo --epsilon 0.35`
    """
    commands.dial_to(run, epsilon)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder that a run was written to.")]) -> None:
    """Draw a run's report again: `report.html`, one file to send to anybody, and `figures/`.

    Example: `unlearn-ext report runs/demo`
    """
    from ..report import write_report

    out.print(f"Report: {escape(str(write_report(run)))}", soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that `sweep` or `demo` wrote.")],
    extractor: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Whose features to compare: efficientnet-lite0, mnist-cnn, fashion-mnist-cnn, inception-v3[:FILE] or "
            "clip:FOLDER_OR_ID. May be given more than once.",
        ),
    ] = ["efficientnet-lite0"],  # noqa: B006  typer only reads it
    images: Annotated[
        int | None, typer.Option(min=8, help="Of each kind.", show_default="all validation images of the smaller set")
    ] = None,
) -> None:
    """FID, KID, IS, cosine, PSNR and SSIM of every model of a run, on validation images; also as `metrics.csv`.

    Example: `unlearn-ext evaluate runs/demo --extractor mnist-cnn`
    """
    commands.evaluate_run(run, extractor, images)


@app.command()
def reproduce(
    family: Annotated[str, typer.Option(help="Kind of model, or all.", metavar="FAMILY")] = "vqgan",
    seeds: Annotated[int | None, typer.Option(min=1, help="How many.", show_default="3; with --quick 1")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short sweeps of few images, for a first look.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Models trained side by side.", show_default="as many as cores")
    ] = None,
    device: Device = None,
    out_: Out = Path("runs/reproduction"),
) -> None:
    """Ours beside every baseline, on built-in images: tables and a page.

    Every method gets the same search and the same number of gradient pairs in one warm-started sweep, and is judged by
    f2 at equal f1 and by hypervolume, mixtures of its models included.

    Beside it, of the first seed: which exponent δ is fastest, how soon the forgotten comes back, what a probe and a
    linear reader find in the latents, and what the size of the hole changes.

    What is there already is not computed again: a run cut short goes on, and more seeds can be added.

    Examples:

    - `unlearn-ext reproduce --quick --out runs/quick`

    - `unlearn-ext reproduce --family all --seeds 5`
    """
    commands.reproduce_to(out_, family, seeds, quick, jobs, device)


@app.command()
def info() -> None:
    """What was built, what was found, and why a path is not taken."""
    import unlearn_ext

    out.print(facts_table("unlearn_ext", unlearn_ext.build_info()))
