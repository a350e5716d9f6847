"""A linear reader: ridge regression from latents to the hidden pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..unlearning.batches import pixels
from .context import Context, ImageSet
from .estimates import Estimate, mean
from .protocol import Audit, Finding
from .reading import hole, latents, linear_prediction, mean_in

__all__ = ["LINEAR_READER", "mean_image"]


def _findings(context: Context) -> Iterator[Finding]:
    blind = [mean_image(context, part) for part in (context.forget, context.retain)]
    yield Finding.of("error of the mean image", blind)
    read = [_read(context, part) for part in (context.forget, context.retain)]
    yield Finding.of("error of a linear reader", read, chance=blind[0].value)


def mean_image(context: Context, part: ImageSet) -> Estimate:
    """Return the error in the hole of the mean image of a set: the result of a reader without information."""
    measured = pixels(part.measured)
    wrong = (pixels(part.fitted).mean(0) - measured).square()
    return mean(mean_in(hole(measured, context.task), wrong))


def _read(context: Context, part: ImageSet) -> Estimate:
    """Fit a reader to one half of a set and return its error in the hole on the other."""
    fitted, measured = pixels(part.fitted), pixels(part.measured)
    counts, masks = hole(measured, context.task), hole(fitted, context.task)
    read = counts.any(0) | masks.any(0)  # with random masks, all pixels; otherwise the hole
    seen, unseen = (latents(context.encode, context.model, images, context.task) for images in (fitted, measured))
    predicted = linear_prediction(seen, unseen, _columns(fitted, read))
    wrong = np.square(predicted - _columns(measured, read))
    return mean(mean_in(counts[:, read], torch.from_numpy(wrong)))


def _columns(images: torch.Tensor, read: torch.Tensor) -> np.ndarray:
    return images[:, read].double().numpy()


LINEAR_READER = Audit(
    "linear reader",
    "A ridge regression from the latents to the hidden pixels, fitted to some images of a set and measured on others. "
    "An error below that of the mean image means that the latents still carry the hidden part, even if the model's own "
    "decoder does not show it. An error at that of the mean image does not exclude a stronger reader.",
    _findings,
)
