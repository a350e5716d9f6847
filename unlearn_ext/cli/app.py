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
from .asked import asked_epsilons, folders_to_forget, request_names, typed_epsilons
from .audit import audit
from .convert import convert
from .evidence import Evidence, add_commands
from .export import export
from .images import describe
from .inputs import Prepared, divided, keep_apart, prepare
from .options import Device, Family, Machine, Pictures, Sources, Training, unfolded
from .place import Place
from .pretraining import pretrain
from .requests import requests
from .terminal import Watch, err, facts_table, out, plain_warnings, together

__all__ = [
    "Epsilon",
    "Force",
    "Out",
    "Resume",
    "Wanted",
    "app",
    "convert",
    "demo",
    "dial",
    "evaluate",
    "export",
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
Epsilon = Annotated[
    list[str],
    typer.Option(
        metavar="[NAME=]VALUE",
        help="What may be left of the forgotten (f1), as a number or as a share of the unmodified model's, such as "
        "12%; smaller forgets more. Of several requests each by its name.",
    ),
]
After = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Earlier run to continue, or the folder of one of a sweep's models: start from its model and keep its "
        "requests within their ε.",
        show_default="none",
        callback=lambda place: None if place is None else expanded(place),
    ),
]


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
    from ..pretrain import recipe_of
    from ..unlearning.identity import known
    from ..unlearning.pictures import ALL  # these images are public

    recipe_of(family)
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


app.command()(pretrain)


@app.command()
@unfolded
def sweep(
    sources: Sources,
    training: Training,
    machine: Machine,
    evidence: Evidence,
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
    if len(folders_to_forget(sources)) > 1:
        raise typer.BadParameter(
            "a front has one ε, so `sweep` takes one request: use `run`, with an ε for each request."
        )
    keep_apart(out_, sources)
    place = Place.of_sweep(out_, points, pictures, resume, force)
    with together():
        sign = evidence.signer()
        with Watch() as watch:
            with first_alone():
                prepared = prepare(sources, training, machine, watch, place)
            prepared = divided(prepared, machine)
            commands.sweep_to(place, prepared, points, pictures, watch)
        commands.show_run(out_, prepared.sources, evidence, sign)


@app.command()
@unfolded
def run(
    sources: Sources,
    training: Training,
    machine: Machine,
    evidence: Evidence,
    epsilon: Epsilon,
    after: After = None,
    out_: Out = Path("runs/run"),
    pictures: Pictures = "blurred",
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train one model at one ε. If you do not know which ε you want, `sweep` shows the cost of several.

    For example:

    - `unlearn-ext run --epsilon 0.3 --data mnist --forget-classes 3,8`

    - `unlearn-ext run --forget ana=ours/ --epsilon ana=12% --retain theirs/ --validation 0 --model checkpoint/`

    - `unlearn-ext run --forget ben=more/ --epsilon ben=12% --after runs/run --out runs/second`

    - `unlearn-ext run --epsilon 0.1 --forget ours/ --retain theirs/ --model checkpoint/ --out runs/mine`

    - `torchrun --nproc-per-node 2 -m unlearn_ext run --epsilon 0.3` splits every minibatch between two processes.
    """
    from ..unlearning.earlier import read_earlier

    keep_apart(out_, sources, after)
    earlier = None if after is None else read_earlier(after)
    epsilons = asked_epsilons(epsilon, list(request_names(sources, earlier).values()))
    place = Place.of_run(out_, epsilons, pictures, resume, force)
    with together():
        sign = evidence.signer()
        with Watch() as watch:
            with first_alone():
                prepared = prepare(sources, training, machine, watch, place, earlier)
            prepared = divided(prepared, machine)
            commands.unlearn_to(place, prepared, epsilons, pictures, watch)
        commands.show_run(out_, prepared.sources, evidence, sign)


@app.command()
def dial(
    run: Annotated[Path, typer.Argument(help="Folder that `sweep` or `demo` wrote.", callback=expanded)],
    epsilon: Annotated[
        list[str],
        typer.Option(
            metavar="VALUE",
            help="What may be left of the forgotten (f1), as a number or as a share of the unmodified model's, such as "
            "12%. Can be repeated.",
        ),
    ],
) -> None:
    """Add a model at any other ε to a sweep and its report, in seconds.

    The model is a mixture: a weighted average of two models of the sweep. A model is trained only where no mixture
    is good enough.

    Example: `unlearn-ext dial runs/demo --epsilon 0.35`
    """
    commands.dial_to(run, typed_epsilons(epsilon))


app.command()(requests)


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


app.command()(convert)
app.command()(export)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that `sweep`, `run` or `demo` wrote.", callback=expanded)],
    extractor: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Network whose features are compared: efficientnet-lite0, mnist-cnn, fashion-mnist-cnn, "
            "inception-v3[:FILE] or clip:FOLDER_OR_ID. Can be repeated.",
        ),
    ] = ["efficientnet-lite0"],  # noqa: B006  typer only reads it
    part: Annotated[
        str,
        typer.Option(help="Images to evaluate: validation (held out) or training.", metavar="PART"),
    ] = "validation",
    images: Annotated[
        int | None, typer.Option(min=1, help="Images per set, at most.", show_default="all of the smaller set")
    ] = None,
) -> None:
    """Compute FID, KID, IS, cosine, PSNR and SSIM of every model of a run.

    The numbers are printed and written to `metrics.csv` in the run's folder. With fewer than eight images of a set,
    FID, KID and IS are left out.

    For example:

    - `unlearn-ext evaluate runs/demo --extractor mnist-cnn`

    - `unlearn-ext evaluate runs/mine --part training` if no images were held out
    """
    commands.evaluate_run(run, extractor, part, images)


app.command()(audit)


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


add_commands(app)
