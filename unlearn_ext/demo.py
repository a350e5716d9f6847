"""The demo's fixed choices: what `unlearn-ext demo` runs, on two cores in a few minutes."""

from __future__ import annotations

from .data import ForgetRetain, load
from .models.vqgan import VQGAN
from .pretrain import pretrained
from .progress import Callback
from .settings import Settings
from .tasks import CenterCrop

DATASET = "mnist"
FORGET_CLASSES = (0, 1)
TASK = CenterCrop(0.5)
POINTS = 7
SETTINGS = Settings()


def prepare(progress: Callback | None = None) -> tuple[VQGAN, ForgetRetain]:
    """The demo's data, and the model that fills in their holes: trained now, or from the cache.

    Args:
        progress: called while training, see :func:`unlearn_ext.pretrain.pretrained`.
    """
    data = load(DATASET, forget_classes=FORGET_CLASSES, seed=SETTINGS.seed)
    return pretrained(data, TASK, seed=SETTINGS.seed, progress=progress), data
