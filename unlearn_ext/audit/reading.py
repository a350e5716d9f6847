"""What can be recovered of the hidden pixels: by a model's own decoder, and by linear regression on its latents."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..errors import require
from ..models import CHUNK, I2IModel, reconstruct
from ..tasks import Corruption, Task
from ..unlearning.batches import pixels
from ..unlearning.encoder import Encoder
from ..unlearning.hole import hole_of

__all__ = [
    "PENALTIES",
    "hole",
    "hole_error",
    "hole_errors",
    "latents",
    "linear_prediction",
    "linear_reading",
    "mean_in",
]

PENALTIES = np.logspace(-4, 2, 7)  # candidates for the ridge penalty, for scaled latents; chosen by leave-one-out


def linear_prediction(fitted: np.ndarray, asked: np.ndarray, fitted_to: np.ndarray) -> np.ndarray:
    """Return the predictions of a ridge regression with an intercept, [M, P].

    Args:
        fitted: latents to fit on, float64 [N, D].
        asked: latents to predict from, [M, D].
        fitted_to: values for ``fitted``, [N, P].
    """
    require("sklearn", "report")
    from sklearn.linear_model import RidgeCV

    centre = fitted.mean(0)
    scale = math.sqrt(np.square(fitted - centre).sum(1).mean()) or 1.0  # 0 if all latents are equal
    with np.errstate(invalid="ignore"):  # 0/0 in the choice of the penalty if all latents are equal
        reader = RidgeCV(PENALTIES).fit((fitted - centre) / scale, fitted_to)
    return reader.predict((asked - centre) / scale)


def linear_reading(fitted: np.ndarray, asked: np.ndarray, fitted_to: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean squared error of :func:`linear_prediction`; ``truth`` are the values for ``asked``, [M, P]."""
    return float(np.square(linear_prediction(fitted, asked, fitted_to) - truth).mean())


@torch.no_grad()
def latents(encode: Encoder, model: I2IModel, images: torch.Tensor, task: Corruption) -> np.ndarray:
    """Return the latents of images, float64 [N, D]."""
    inputs = (model.inputs(pixels(chunk), task) for chunk in images.split(CHUNK))
    made = [encode(*(part.to(model.device) for part in given)).flatten(1).cpu() for given in inputs]
    return torch.cat(made).double().numpy()


def hole_error(model: I2IModel, images: torch.Tensor, task: Task) -> float:
    """Return the mean squared error of a model's reconstructions over all pixels that the task hides."""
    original = pixels(images)
    hidden = task.mask(original).expand_as(original)
    return (reconstruct(model, original, task) - original)[hidden].square().mean().item()


def hole_errors(model: I2IModel, images: torch.Tensor, task: Task) -> np.ndarray:
    """Return the mean squared error of each reconstruction over :func:`hole`, float64 [N]."""
    original = pixels(images)
    return mean_in(hole(original, task), (reconstruct(model, original, task) - original).square())


def hole(images: torch.Tensor, task: Task) -> torch.Tensor:
    """Return the mask of the pixels that count, bool [N, C, H, W]: the hidden ones, or all if the task hides none."""
    return hole_of(images, task).expand_as(images)


def mean_in(mask: torch.Tensor, values: torch.Tensor) -> np.ndarray:
    """Return the mean of each image's values where the mask is true, float64 [N]; both are [N, ...]."""
    inside = mask.flatten(1).double()
    return ((values.flatten(1).double() * inside).sum(1) / inside.sum(1)).numpy()
