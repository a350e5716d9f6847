"""The prompts of a model's images: each image's own, or the one that was typed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import typer

from .options import Sources

if TYPE_CHECKING:
    from ..data import ForgetRetain

__all__ = ["check_prompts", "give_prompts", "takes_prompts"]


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
    """
    from ..data.sets import digests
    from ..models.prompts import Prompts

    if not takes_prompts(model.family):
        return ""
    parts = (images.forget, images.forget_validation, images.retain, images.retain_validation)
    known = list(itertools.chain(*map(digests, parts)))
    model.prompts = Prompts.filled(sources.prompt or "", images.prompts, known)
    own = sum(digest in images.prompts for digest in known)
    return f"Prompts: {own} images have their own, {len(known) - own} have {model.prompts.fixed!r}."
