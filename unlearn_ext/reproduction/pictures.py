"""Files with reconstructions of the first validation images by the models of one family and seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from .._utils.atomic_io import file_name, write_arrays
from ..data import ForgetRetain
from ..errors import UserError
from ..models import I2IModel, reconstruct
from ..tasks import Task
from ..unlearning.batches import in_bytes, pixels

__all__ = ["CORRUPTED", "IMAGES", "KINDS", "ORIGINAL", "Pictures", "Sets"]

IMAGES = 96  # of each kind, at most
ORIGINAL, CORRUPTED = "original", "corrupted"
KINDS = ("forget", "retain")

Sets = dict[str, np.ndarray]  # "forget" and "retain", uint8 [N, C, H, W]


class Pictures:
    """A folder with one file of reconstructions per model.

    Args:
        out: folder of the experiment.
        family: family of the models.
        seed: random seed.

    Attributes:
        run: folder of our Pareto front.
        folder: folder of the pictures, inside ``run``.
    """

    def __init__(self, out: Path, family: str, seed: int) -> None:
        self.run = out / file_name(f"{family}-{seed}")
        self.folder = self.run / "pictures"

    def keep_images(self, images: ForgetRetain, task: Task) -> None:
        """Write the images and their corrupted versions, which are the models' inputs."""
        self._keep(ORIGINAL, images, lambda originals: originals)
        self._keep(CORRUPTED, images, task)

    def keep(self, method: str, point: str, model: I2IModel, images: ForgetRetain, task: Task) -> None:
        """Write a model's reconstructions of the images."""
        self._keep(_name(method, point), images, lambda originals: reconstruct(model, originals, task))

    def originals(self) -> Sets | None:
        """Read the images; None if there is no file.

        Raises:
            UserError: the file cannot be read as pictures.
        """
        return self._read(ORIGINAL)

    def corrupted(self) -> Sets | None:
        """Read the corrupted images; otherwise like :meth:`originals`."""
        return self._read(CORRUPTED)

    def made(self, method: str, point: str) -> Sets | None:
        """Read a model's reconstructions; otherwise like :meth:`originals`."""
        return self._read(_name(method, point))

    def _place(self, name: str) -> Path:
        return self.folder / f"{file_name(name)}.npz"

    def _keep(self, name: str, images: ForgetRetain, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
        validation = dict(zip(KINDS, (images.forget_validation, images.retain_validation), strict=True))
        write_arrays(
            self._place(name),
            {kind: in_bytes(make(pixels(part[:IMAGES]))).numpy() for kind, part in validation.items()},
        )

    def _read(self, name: str) -> Sets | None:
        if not (path := self._place(name)).is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {kind: archive[kind] for kind in KINDS}
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise UserError(f"{path} cannot be read as pictures of this experiment: {error}.") from error


def _name(method: str, point: str) -> str:
    return f"{method} {point}".strip()
