"""A small model of each family for the built-in images, trained once and kept in the cache."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch

from .._utils.atomic_io import save_folder
from .._utils.cache import cache_folder, writable_cache_folder
from ..data import ForgetRetain
from ..models import check_family
from ..tasks import Corruption
from ..unlearning.progress import Callback
from . import autoencoder, diffusion, mae, vqgan
from .loop import train
from .recipe import Recipe

__all__ = ["RECIPES", "Recipe", "pretrained", "train"]

RECIPES = {module.Recipe.family: module.Recipe for module in (vqgan, autoencoder, mae, diffusion)}


def pretrained(
    family: str,
    data: ForgetRetain,
    task: Corruption,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Callback | None = None,
) -> Path:
    """The folder of a model that fills in what ``task`` takes away, trained on the training part of both sets.

    It is trained once and kept in the cache; :func:`unlearn_ext.models.load` reads it.

    Args:
        family: one of ``RECIPES``.
        data: whose ``forget`` and ``retain`` images it learns; the validation parts stay unseen.
        task: T.
        seed: of initial weights, minibatches and noise.
        recipe: architecture and training, in place of the family's usual ones.
        progress: called at most ten times a second while training, with f2 the training loss.

    Raises:
        UserError: unknown family, a task that it cannot take, a missing extra, or, before anything is trained, a cache
            folder that cannot be written to.
    """
    check_family(family)
    recipe = recipe or RECIPES[family]()
    images = torch.cat([data.forget, data.retain])
    folder = cache_folder() / f"{family}-{_digest(images, task, seed, recipe)}"
    if not folder.is_dir():
        writable_cache_folder()
        save_folder(folder, train(images, task, seed, recipe, progress).save_pretrained, replace=False)
    return folder


def _digest(images: torch.Tensor, task: Corruption, seed: int, recipe: Recipe) -> str:
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(repr((str(task), seed, asdict(recipe))).encode())
    return digest.hexdigest()[:16]
