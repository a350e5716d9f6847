"""The commands that write and verify the evidence of a run, and the options of `run` and `sweep` for it."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .._utils.distributed import is_first
from .._utils.hub import expanded
from .images import built_in
from .inputs import prepared_of, recognised
from .options import Machine, Sources, unfolded
from .sources_file import kept
from .terminal import Watch, out

if TYPE_CHECKING:
    from ..data import ForgetRetain
    from ..evidence.record import Before, Sign

__all__ = ["PASSWORD", "Evidence", "add_commands", "leave"]

PASSWORD = "UNLEARN_EXT_KEY_PASSWORD"  # environment variable
_STYLES = {"holds": "green", "contradicts": "red", "not at hand": "yellow", "note": "dim"}

_Run = Annotated[Path, typer.Argument(help="Folder of the run.", callback=expanded)]


def _option(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Evidence", **more)


@dataclass(frozen=True)
class Evidence:
    """Options for what `evidence.json` says about a request, and for its signature."""

    request_id: Annotated[
        str | None,
        _option("Id of the request, for evidence.json.", metavar="TEXT", show_default="a UUID of the run's identity"),
    ] = None
    operator: Annotated[
        str | None, _option("Who runs this, for evidence.json.", metavar="TEXT", show_default="empty")
    ] = None
    sign: Annotated[
        Path | None,
        _option(
            "Ed25519 private key in PEM to sign evidence.json with. Its password is asked for, or taken from "
            f"{PASSWORD}.",
            metavar="KEY",
        ),
    ] = None

    def signer(self) -> Sign | None:
        """Load the key, which may ask for its password: call it before any work. None without ``--sign``.

        Raises:
            UserError: the key cannot be used.
        """
        if self.sign is None or not is_first():
            return None
        from ..evidence.signing import signer

        key = Path(expanded(self.sign))
        return signer(key, lambda: os.environ.get(PASSWORD) or typer.prompt(f"Password of {key}", hide_input=True))


def leave(run: Path, sources: Sources, evidence: Evidence | None = None, sign: Sign | None = None) -> None:
    """Write the evidence of a finished run.

    Args:
        run: folder of the run.
        sources: the options that name its model.
        evidence: the options that were typed.
        sign: what :meth:`Evidence.signer` returned.
    """
    from ..evidence import Labels, write_evidence

    evidence = evidence or Evidence()
    before = _model_before(sources, _seed(run))
    path = write_evidence(run, before, Labels(evidence.request_id, evidence.operator), sign)
    out.print(f"Evidence: {escape(str(path))}", soft_wrap=True)


@unfolded
def evidence(run: _Run, evidence: Evidence) -> None:
    """Write a run's evidence again: `evidence.json`, `evidence.html` and, with `--sign`, the signature.

    In a folder that has evidence, only the labels, the audits and the signature are new: the recorded SHA-256 stay, so
    that a file that was changed meanwhile is still found.

    For example:

    - `unlearn-ext evidence runs/mine --operator "Data protection, A. Example" --request-id DSR-2026-017`

    - `unlearn-ext evidence runs/mine --sign key.pem`
    """
    from ..evidence import Labels, refresh

    sign = evidence.signer()
    if path := refresh(run, Labels(evidence.request_id, evidence.operator), sign):
        out.print(f"Evidence: {escape(str(path))}", soft_wrap=True)
    else:
        leave(run, kept(run), evidence, sign)


def verify(
    run: _Run,
    model_before: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Folder or file of the model before, if it was moved."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ed25519 public key in PEM, to check the signature."),
    ] = None,
) -> None:
    """Verify a run: compare `evidence.json` with all files, compute f1 and f2 again, and say line by line what holds.

    Images and models that are gone are named as *not at hand*; they contradict nothing. The exit code is 0 if nothing
    contradicts the evidence, else 1.

    For example:

    - `unlearn-ext verify runs/mine`

    - `unlearn-ext verify runs/mine --model-before checkpoint/ --public-key public.pem`
    """
    from ..evidence.checks import verify
    from ..evidence.lines import CONTRADICTS

    contradictions = 0
    before, key = (given and given.expanduser() for given in (model_before, public_key))
    lines = verify(run, model_before=before, public_key=key, load=lambda: _images(run))
    for line in lines:
        contradictions += line.status == CONTRADICTS
        status = "CONTRADICTS" if line.status == CONTRADICTS else line.status
        out.print(f"[{_STYLES[line.status]}]{status:<12}[/] {escape(line.text)}", soft_wrap=True)
    if contradictions:
        many = "1 line contradicts" if contradictions == 1 else f"{contradictions} lines contradict"
        out.print(f"{many} the evidence.")
        raise typer.Exit(1)
    out.print("Nothing contradicts the evidence.")


def add_commands(app: typer.Typer) -> None:
    """Add the commands `evidence` and `verify`."""
    app.command()(evidence)
    app.command()(verify)


def _images(run: Path) -> ForgetRetain:
    """Return the images of a run again; `verify` itself says what has changed."""
    with Watch() as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return prepared_of(run, Machine(), watch).images


def _model_before(sources: Sources, seed: int) -> Before | None:
    """Return the model before unlearning, by its name only; a small model is found in the cache."""
    from .. import tasks
    from ..evidence.places import model_place
    from ..evidence.record import Before
    from ..models.doors import companions
    from ..pretrain import pretrained

    if sources.model:
        place = model_place(sources.model, {"model": sources.model})
        if place is None:
            return None
        local = Path(expanded(sources.model))
        named = Path(os.path.abspath(local)).name if local.exists() else sources.model
        configuration = recognised(sources).model_config
        return Before(named, place, companions(place, configuration) if place.is_file() else ())
    images, _ = built_in(sources, seed, validation=sources.validation)
    folder = pretrained(sources.family, images, tasks.parse(sources.task), seed=seed)
    return Before(folder.name, folder)


def _seed(run: Path) -> int:
    from ..evidence.tables import metrics_of

    return int(metrics_of(run).get("seed") or 0)
