"""The prompts of a model's images: each image's own, or the one that was typed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import typer

from ..errors import UserError
from .options import Sources

if TYPE_CHECKING:
    from ..data import ForgetRetain
    from ..models.prompts import Prompts
    from ..unlearning.run_folder import RunFolder

__all__ = ["check_prompts", "check_recorded", "give_prompts", "takes_prompts"]


def takes_prompts(family: str) -> bool:
    """Return whether the models of a family take a prompt with each image."""
    return family == "latent-diffusion"


def check_prompts(sources: Sources) -> None:
    """Reject options for prompts that contradict other options.

    Raises:
        typer.BadParameter: the family takes no prompts, or there is no data set with a column of them.
    """
    for option, given in (("--prompt", sources.prompt), ("--prompt-column", sources.prompt_column)):
        if given is not None and not takes_prompts(sources.family):
            raise typer.BadParameter(f"{option} is for --family latent-diffusion; {sources.family} takes no prompts.")
    if sources.prompt_column and not sources.dataset:
        raise typer.BadParameter("--prompt-column names a column of --dataset: give both.")


def give_prompts(model: Any, images: ForgetRetain, sources: Sources) -> str:
    """Give a model the prompts of its images, if its family takes prompts.

    Returns:
        A sentence about where the prompts come from; "" for other families.

    Raises:
        UserError: images have prompts of their own, and are augmented.
    """
    if not takes_prompts(model.family):
        return ""
    known = _digests(images)
    model.prompts = _filled(images, sources, known)
    if model.prompts.own and sources.augment:
        raise UserError(
            "images have prompts of their own, but augmented images cannot be recognised: leave out --augment, or "
            "give one prompt for all images."
        )
    own = sum(digest in images.prompts for digest in known)
    return f"Prompts: {own} images have their own, {len(known) - own} have {model.prompts.fixed!r}."


def check_recorded(run: RunFolder, images: ForgetRetain, sources: Sources) -> None:
    """Check that the images of a run have the prompts that they had in the run.

    Args:
        run: the run.
        images: its images, as they were found again.
        sources: its options.

    Raises:
        UserError: some have other prompts.
    """
    record = run.metrics.get("prompts")
    if not record:  # another family, or an earlier version
        return
    known = _digests(images)
    if changed := _filled(images, sources, known).changed(record, known):
        raise UserError(
            f"{changed} image{' has' if changed == 1 else 's have'} another prompt than in {run.path}: put the text "
            "files beside the images, or the column of the data set, back as they were."
        )


def _filled(images: ForgetRetain, sources: Sources, known: list[str]) -> Prompts:
    """Return the prompts of images, of which ``known`` are the digests."""
    from ..models.prompts import Prompts

    return Prompts.filled(sources.prompt or "", images.prompts, known)


def _digests(images: ForgetRetain) -> list[str]:
    from ..data.sets import digests

    parts = (images.forget, images.forget_validation, images.retain, images.retain_validation)
    return list(itertools.chain(*map(digests, parts)))
