"""The commands: thin wrappers around the functions of `unlearn_ext`, and the handler that prints errors."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from .._utils.distributed import FirstFailed, first_alone
from .._utils.hub import expanded
from ..errors import UserError
from ..unlearning.pictures import CHOICES
from . import commands
from .inputs import Prepared, built_in, describe, keep_apart, prepare
from .options import Device, Family, Machine, Pictures, Seed, Small, Sources, Training, unfolded
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

# Defined by typer or by click, depending on the release of typer; so is the context of a group of commands.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class _Commands(TyperGroup):
    """A group of commands that turns every failure into an exit code and a message of one sentence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--debug` to the front, so that it is accepted anywhere on the command line."""
        return super().parse_args(ctx, sorted(args, key=lambda arg: arg != "--debug"))

    def invoke(self, ctx: Any) -> Any:
        """Run a command and set the exit code: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
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

# Shells do not expand ~ in --out=~/run.
Out = Annotated[Path, typer.Option("--out", help="Folder to write the results to.", callback=expanded)]
Wanted = Annotated[int, typer.Option("--points", min=1, help="Number of ε, evenly spaced between the boundaries.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue an interrupted run of the same command."),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an earlier run in the folder: remove only the files that it wrote."),
]
Epsilon = Annotated[float, typer.Option(min=0.0, help="What may be left of the forgotten (f1); smaller forgets more.")]


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="UNLEARN_EXT_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """**Machine unlearning with a limit that you choose.** ε is how much may be left of the forgotten (f1).

    A smaller ε forgets more. At each ε, the damage to the retained (f2) is made as small as possible.

    Start with `unlearn-ext demo`. For help with a command, add `--help`, for example `unlearn-ext sweep --help`.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
    """


@app.command()
def demo(out_: Out = Path("runs/demo"), family: Family = "vqgan", resume: Resume = False, force: Force = False) -> None:
    """Run everything on built-in images: train a small model, unlearn it at several ε and draw the report.

    The trained model is cached, so a second demo is faster.

    For example:

    - `unlearn-ext demo --out runs/demo`

    - `unlearn-ext demo --family diffusion --out runs/diffusion`
    """
    from .. import demo as chosen
    from ..models import check_family
    from ..unlearning.identity import known
    from ..unlearning.pictures import ALL  # these images are public

    check_family(family)
    choice = chosen.CHOICES[family]
    place = Place.of_sweep(out_, choice.points, ALL, resume, force)
    with together():
        with Watch() as watch:
            with first_alone():
                place.check(known(family, choice.settings))
                model, images = chosen.prepare(family, watch)
            description = describe(images.name, chosen.FORGET_CLASSES)
            prepared = Prepared(model, images, chosen.TASK, description, choice.settings)
            commands.sweep_to(place, prepared, choice.points, ALL, watch)
        classes = ",".join(map(str, chosen.FORGET_CLASSES))
        commands.show_run(out_, Sources(chosen.DATASET, classes, str(chosen.TASK), family))


@app.command()
@unfolded
def pretrain(small: Small, seed: Seed = 0) -> None:
    """Train a family's small model for built-in images in a few minutes, or find it in the cache.

    Prints the model's folder, which can be given as `--model`. `sweep` and `run` without `--model` use the same model.

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
    pictures: Pictures = "blurred",
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Compute the Pareto front: a few trained models, both boundaries, and models at evenly spaced ε between them.

    For example:

    - `unlearn-ext sweep --data fashion-mnist --forget-classes 0,6 --points 5`

    - `unlearn-ext sweep --forget ours/ --retain theirs/ --model checkpoint/ --out runs/mine`

    - `unlearn-ext sweep --data-dir photos/ --forget-classes cat,dog --model checkpoint/ --out runs/mine`

    - After an interruption, the same command with `--resume` continues and gives the results of an uninterrupted run.

    - `torchrun --nproc-per-node 2 -m unlearn_ext sweep` splits every minibatch between two processes.
    """
    keep_apart(out_, sources)
    place = Place.of_sweep(out_, points, pictures, resume, force)
    with together():
        with Watch() as watch:
            with first_alone():
                prepared = prepare(sources, training, machine, watch, place)
            commands.sweep_to(place, prepared, points, pictures, watch)
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
    """Train one model at one ε. If you do not know which ε you want, `sweep` shows the cost of several.

    For example:

    - `unlearn-ext run --epsilon 0.3 --data mnist --forget-classes 3,8`

    - `unlearn-ext run --epsilon 0.1 --forget ours/ --retain theirs/ --model checkpoint/ --out runs/mine`

    - `torchrun --nproc-per-node 2 -m unlearn_ext run --epsilon 0.3` splits every minibatch between two processes.
    """
    keep_apart(out_, sources)
    place = Place.of_run(out_, epsilon, resume, force)
    with together():
        with Watch() as watch:
            with first_alone():
                prepared = prepare(sources, training, machine, watch, place)
            tables = commands.unlearn_to(place, prepared, epsilon, watch)
        for table in tables:
            out.print(table)
        out.print(f"Model: {escape(str(place.result))}", soft_wrap=True)


@app.command()
def dial(
    run: Annotated[Path, typer.Argument(help="Folder that `sweep` or `demo` wrote.", callback=expanded)],
    epsilon: Annotated[
        list[float], typer.Option(min=0.0, help="What may be left of the forgotten (f1). Can be repeated.")
    ],
) -> None:
    """Add a model at any other ε to a sweep and its report, in seconds.

    The model is a mixture: a weighted average of two models of the sweep. A model is trained only where no mixture
    is good enough.

    Example: `unlearn-ext dial runs/demo --epsilon 0.35`
    """
    commands.dial_to(run, epsilon)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", callback=expanded)],
    pictures: Annotated[
        str | None,
        typer.Option(
            metavar="CHOICE",
            help=f"Pictures to show: {', '.join(CHOICES)}; never more than the run saved.",
            show_default="as in the run",
        ),
    ] = None,
) -> None:
    """Draw a run's report again: `report.html`, a single self-contained file, and `figures/`.

    For example:

    - `unlearn-ext report runs/demo`

    - `unlearn-ext report runs/mine --pictures none`
    """
    from ..report import write_report

    out.print(f"Report: {escape(str(write_report(run, pictures)))}", soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that `sweep` or `demo` wrote.", callback=expanded)],
    extractor: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Network whose features are compared: efficientnet-lite0, mnist-cnn, fashion-mnist-cnn, "
            "inception-v3[:FILE] or clip:FOLDER_OR_ID. Can be repeated.",
        ),
    ] = ["efficientnet-lite0"],  # noqa: B006  typer only reads it
    images: Annotated[
        int | None, typer.Option(min=8, help="Validation images per set.", show_default="all of the smaller set")
    ] = None,
) -> None:
    """Compute FID, KID, IS, cosine, PSNR and SSIM of every model of a run on validation images.

    The numbers are printed and written to `metrics.csv` in the run's folder.

    Example: `unlearn-ext evaluate runs/demo --extractor mnist-cnn`
    """
    commands.evaluate_run(run, extractor, images)


@app.command()
def reproduce(
    family: Annotated[str, typer.Option(help="Kind of model, or all of them.", metavar="FAMILY")] = "vqgan",
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default="3; with --quick 1")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short sweeps of few images, for a first impression.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Models trained in parallel.", show_default="one per CPU core")
    ] = None,
    device: Device = None,
    out_: Out = Path("runs/reproduction"),
) -> None:
    """Compare our method with every baseline on built-in images, as tables and an HTML page.

    Every method gets the same hyperparameter search and the same number of gradient pairs in one warm-started sweep.
    Methods are compared by f2 at equal f1 and by hypervolume; mixtures of a method's models count too.

    Further studies use the first seed: which exponent δ is fastest, how soon the forgotten comes back under further
    training, what a linear probe and a linear reader find in the latents, and how the size of the hole matters.

    Finished parts are not computed again: an interrupted run continues, and seeds can be added later.

    For example:

    - `unlearn-ext reproduce --quick --out runs/quick`

    - `unlearn-ext reproduce --family all --seeds 5`
    """
    commands.reproduce_to(out_, family, seeds, quick, jobs, device)


@app.command()
def info() -> None:
    """Show the versions of Python and torch, which kernels were compiled, and why any of them are not used."""
    import unlearn_ext

    out.print(facts_table("unlearn_ext", unlearn_ext.build_info()))
