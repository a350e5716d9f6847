"""The demo's fixed choices: what `unlearn-ext demo` runs, on two cores in a few minutes."""

from __future__ import annotations

from . import data, models
from .pretrain import pretrained
from .progress import Callback
from .settings import Settings
from .tasks import CenterCrop

DATASET = "mnist"
FORGET_CLASSES = (0, 1)
TASK = CenterCrop(0.5)
POINTS = 7
SETTINGS = {"vqgan": Settings(), "autoencoder": Settings(), "mae": Settings(lr=5e-4), "diffusion": Settings()}


def prepare(family: str, progress: Callback | None = None) -> tuple[models.I2IModel, data.ForgetRetain]:
    """The demo's data, and the model of a family that fills in their holes: trained now, or from the cache.

    Args:
        family: one of ``SETTINGS``.
        progress: called while training, see :func:`unlearn_ext.pretrain.pretrained`.

    Raises:
        UserError: there is no such family.
    """
    images = data.load(DATASET, forget_classes=FORGET_CLASSES)
    return models.load(family, pretrained(family, images, TASK, progress=progress)), images
