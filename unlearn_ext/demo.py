"""Fixed choices: what `unlearn-ext demo` runs, on two cores in a few minutes, and `reproduce` compares with others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import data, models
from .pretrain import RECIPES, pretrained
from .tasks import CenterCrop, Task
from .unlearning.progress import Callback
from .unlearning.settings import Settings

__all__ = ["CHOICES", "DATASET", "FORGET_CLASSES", "TASK", "Choice", "prepare", "retrained"]

DATASET = "mnist"
FORGET_CLASSES = (0, 1)
TASK = CenterCrop(0.5)


@dataclass(frozen=True)
class Choice:
    """What suits a family's small model.

    Attributes:
        settings: of the training.
        points: between the boundaries.
        share: of the images that are unlearned on.
    """

    settings: Settings
    points: int = 5
    share: float = 1.0


CHOICES = {
    "vqgan": Choice(Settings()),
    "autoencoder": Choice(Settings(steps=96)),
    "mae": Choice(Settings(lr=5e-4, steps=400)),
    # Its frozen encoder works at every step and in every evaluation: fewer images keep to the minutes.
    "diffusion": Choice(Settings(lr=3e-3, batch_size=32), share=1 / 2),
}


def prepare(
    family: str, progress: Callback | None = None, *, seed: int = 0, task: Task = TASK, share: float | None = None
) -> tuple[models.I2IModel, data.ForgetRetain]:
    """The demo's data, and the model of a family that fills in their holes: trained now, or from the cache.

    Args:
        family: one of ``CHOICES``.
        progress: called while training, see :func:`unlearn_ext.pretrain.pretrained`.
        seed: of the division into training and validation images, and of the model.
        task: what the model fills in.
        share: of the images of each set that are returned; that of ``CHOICES`` by default. The model saw all of them.

    Raises:
        UserError: there is no such family.
    """
    models.check_family(family)
    images = _images(family, seed)
    model = models.load(family, pretrained(family, images, task, seed=seed, progress=progress))
    return model, _some(images, CHOICES[family].share if share is None else share)


def retrained(family: str, progress: Callback | None = None, *, seed: int = 0, task: Task = TASK) -> models.I2IModel:
    """Return a model that never saw an image to forget: the same recipe and seed, on the images to retain alone.

    The arguments and errors are those of :func:`prepare`.
    """
    models.check_family(family)
    images = _images(family, seed)
    kept = replace(images, forget=images.forget[:0])
    return models.load(family, pretrained(family, kept, task, seed=seed, progress=progress))


def _images(family: str, seed: int) -> data.ForgetRetain:
    return data.load(DATASET, forget_classes=FORGET_CLASSES, size=RECIPES[family].size, seed=seed)


def _some(images: data.ForgetRetain, share: float) -> data.ForgetRetain:
    """The first images of each set."""
    sets = {name: part[: round(share * len(part))] for name, part in vars(images).items() if name != "name"}
    return data.ForgetRetain(images.name, **sets)
