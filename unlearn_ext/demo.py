"""Fixed settings for `unlearn-ext demo` (a few minutes on two cores) and for the comparison by `reproduce`."""

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
    """Settings for the small model of a family.

    Attributes:
        settings: training settings.
        points: number of models between the most and the least forgotten one.
        share: fraction of the images of each set that is used for unlearning.
    """

    settings: Settings
    points: int = 5
    share: float = 1.0


CHOICES = {
    "vqgan": Choice(Settings()),
    "autoencoder": Choice(Settings(steps=96)),
    "mae": Choice(Settings(lr=5e-4, steps=400)),
    # The frozen encoder runs at every step and in every evaluation, so fewer images are used to finish in minutes.
    "diffusion": Choice(Settings(lr=3e-3, batch_size=32), share=1 / 2),
}


def prepare(
    family: str, progress: Callback | None = None, *, seed: int = 0, task: Task = TASK, share: float | None = None
) -> tuple[models.I2IModel, data.ForgetRetain]:
    """Return the small model of a family and the demo's data; train the model unless it is in the cache.

    Args:
        family: a key of ``CHOICES``.
        progress: called during training, see :func:`unlearn_ext.pretrain.pretrained`.
        seed: random seed of the split into training and validation images, and of the model.
        task: task that the model is trained for.
        share: fraction of the images of each set to return, by default that of ``CHOICES``; the model is trained on
            all images.

    Raises:
        UserError: the family is unknown.
    """
    models.check_family(family)
    images = _images(family, seed)
    model = models.load(family, pretrained(family, images, task, seed=seed, progress=progress))
    return model, images.some(CHOICES[family].share if share is None else share, "not used by the demo")


def retrained(family: str, progress: Callback | None = None, *, seed: int = 0, task: Task = TASK) -> models.I2IModel:
    """Return a model trained with the same recipe and seed on the retain images only.

    Arguments and errors are as for :func:`prepare`.
    """
    models.check_family(family)
    images = _images(family, seed)
    kept = replace(images, forget=images.forget[:0])
    return models.load(family, pretrained(family, kept, task, seed=seed, progress=progress))


def _images(family: str, seed: int) -> data.ForgetRetain:
    return data.load(DATASET, forget_classes=FORGET_CLASSES, size=RECIPES[family].size, seed=seed)
