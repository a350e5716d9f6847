"""A new decoder: the decoder is trained further on the latents, while the encoder stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from ..models import CHUNK, I2IModel, Inputs
from ..unlearning.batches import Shuffled, pixels
from .context import Context
from .estimates import mean
from .linear_reader import mean_image
from .protocol import Audit, Finding
from .reading import hole, hole_errors

__all__ = ["BATCH", "DECODER", "LR", "STEPS"]

STEPS = 100
BATCH = 32
LR = 1e-3  # of AdamW, falling linearly to 0


def _findings(context: Context) -> Iterator[Finding]:
    context.need_pictures()
    chance = mean_image(context, context.forget).value
    forget, retain = context.forget.fitted, context.retain.fitted
    ways = {
        "the model's own decoder": (),
        "a decoder trained on retained images": (retain,),
        "a decoder trained on retained and forgotten images": (retain, forget),
    }
    for what, sets in ways.items():
        model = _with_trained_decoder(context, sets) if sets else context.model
        measured = (context.forget.measured, context.retain.measured)
        errors = (mean(hole_errors(model, images, context.task)) for images in measured)
        yield Finding.of(f"error of {what}", errors, chance=chance)


def _with_trained_decoder(context: Context, sets: tuple[torch.Tensor, ...]) -> I2IModel:
    """Return a copy of the model whose decoder is trained on sets of images, with equal shares of each minibatch."""
    model = copy.deepcopy(context.model)
    trained = _decoder_parameters(model)
    generator = torch.Generator().manual_seed(context.seed)
    size = BATCH // len(sets)
    sources = [(_Encoded(context, model, part), Shuffled(len(part), size, generator)) for part in sets]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        losses = [encoded.loss(model, next(indices)) for encoded, indices in sources]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


def _decoder_parameters(model: I2IModel) -> list[torch.nn.Parameter]:
    """Freeze E, unfreeze everything else, and return what is unfrozen."""
    encoder = {id(parameter) for parameter in model.encoder_parameters()}
    for parameter in model.module.parameters():
        parameter.requires_grad_(id(parameter) not in encoder)
    return [parameter for parameter in model.module.parameters() if parameter.requires_grad]


class _Encoded:
    """Images with their latents, which do not change while the decoder is trained."""

    def __init__(self, context: Context, model: I2IModel, images: torch.Tensor) -> None:
        self._images, self._task = images, context.task
        encode = context.encode
        with torch.no_grad():
            latents = [encode(*self._inputs(model, chunk)).cpu() for chunk in pixels(images).split(CHUNK)]
        self._latents = torch.cat(latents)

    def loss(self, model: I2IModel, index: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error in the hole of a minibatch, 0-d."""
        original = pixels(self._images[index])
        made = model.decode(self._latents[index].to(model.device), *self._inputs(model, original))
        counts = hole(original, self._task).to(made.device)
        return (made - original.to(made.device))[counts].square().mean()

    def _inputs(self, model: I2IModel, images: torch.Tensor) -> Inputs:
        return tuple(part.to(model.device) for part in model.inputs(images, self._task))


DECODER = Audit(
    "decoder",
    "The decoder is trained further, with the encoder frozen: on retained images alone, as somebody without the "
    "forgotten images could do, and on both. Errors are measured on images that it was not trained on. An error near "
    "that of the mean image means that this decoder restores nothing; another one might.",
    _findings,
)
