"""A small model of each family, for the built-in images or the user's."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch

from .._utils.atomic_io import save_folder
from .._utils.cache import cache_folder, writable_cache_folder
from ..data import ForgetRetain
from ..errors import UserError
from ..models import check_family
from ..tasks import Corruption
from ..unlearning.progress import Callback
from . import autoencoder, diffusion, mae, vqgan
from .loop import train
from .recipe import Recipe

__all__ = ["RECIPES", "Recipe", "cached", "pretrained", "recipe_of", "train"]

RECIPES = {module.Recipe.family: module.Recipe for module in (vqgan, autoencoder, mae, diffusion)}


def recipe_of(family: str) -> type[Recipe]:
    """Return the recipe of a family's small model.

    Raises:
        UserError: there is no such family, or it has no small model.
    """
    check_family(family)
    if family not in RECIPES:
        raise UserError(
            f"family {family} has no small model, so it needs --model, a checkpoint; families with a small model: "
            f"{', '.join(RECIPES)}."
        )
    return RECIPES[family]


def pretrained(
    family: str,
    data: ForgetRetain,
    task: Corruption,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Callback | None = None,
) -> Path:
    """Return the folder of a model that is trained to fill in what ``task`` hides; train it if it is not cached.

    :func:`unlearn_ext.models.load` loads the model from this folder.

    Args:
        family: one of ``RECIPES``.
        data: images; the model is trained on ``forget`` and ``retain``, not on the validation parts.
        task: the task T.
        seed: random seed of initial weights, minibatches and noise.
        recipe: architecture and training; by default those of the family.
        progress: called at most ten times per second during training, with the training loss as f2.

    Raises:
        UserError: the family is unknown or cannot use the task; an extra is missing; or the cache folder is not
            writable, which is checked before training.
    """
    return cached(family, torch.cat([data.forget, data.retain]), task, seed=seed, recipe=recipe, progress=progress)


def cached(
    family: str,
    images: torch.Tensor,
    task: Corruption,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Callback | None = None,
) -> Path:
    """Do the same as :func:`pretrained` for one tensor of images, uint8 [N, C, S, S] or float in [-1, 1]."""
    recipe = recipe or recipe_of(family)()
    folder = cache_folder() / f"{family}-{_digest(images, task, seed, recipe)}"
    if not folder.is_dir():
        writable_cache_folder()
        save_folder(folder, train(images, task, seed, recipe, progress).save_pretrained, replace=False)
    return folder


def _digest(images: torch.Tensor, task: Corruption, seed: int, recipe: Recipe) -> str:
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(repr((str(task), seed, asdict(recipe))).encode())
    return digest.hexdigest()[:16]
