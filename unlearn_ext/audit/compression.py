"""Compression: does rounding or pruning the weights bring the forgotten back?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..models import I2IModel
from ..unlearning.encoder import Encoder
from .context import DECODED, ENCODED, Context, f1_and_f2
from .estimates import mean
from .protocol import Audit, Finding
from .reading import hole_errors

__all__ = ["COMPRESSION", "prune", "quantize"]

# The layers that quantisation and pruning tools change.
_COMPRESSED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def quantize(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Round weights [out, ...] to symmetric integers with one scale per row, as weight-only quantisation does."""
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True) / most
    return torch.where(scale > 0, (weight / scale).round() * scale, weight)


def prune(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Set the given share of the weights to 0: those with the smallest magnitudes."""
    count = round(share * weight.numel())
    order = weight.abs().flatten().argsort(stable=True)
    kept = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    kept[order[:count]] = False
    return weight * kept.view_as(weight)


_WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda weight: weight,
    "rounded to 8 bits": lambda weight: quantize(weight, 8),
    "rounded to 4 bits": lambda weight: quantize(weight, 4),
    "30 % pruned": lambda weight: prune(weight, 0.3),
    "50 % pruned": lambda weight: prune(weight, 0.5),
}


def _findings(context: Context) -> Iterator[Finding]:
    forget, retain = context.forget.training, context.retain.training
    objectives = context.objectives.held_out(forget[:ENCODED], retain[:ENCODED])
    yield from context.left_out()
    for what, change in _WAYS.items():
        model = _compressed(context.model, change)
        if context.has_latents_of_before:
            yield Finding.of(f"f1, f2 {what}", f1_and_f2(objectives, Encoder(model, context.settings)))
        if context.draws_quickly:
            errors = (mean(hole_errors(model, images[:DECODED], context.task)) for images in (forget, retain))
            yield Finding.of(f"error in the hole {what}", errors)


@torch.no_grad()
def _compressed(model: I2IModel, change: Callable[[torch.Tensor], torch.Tensor]) -> I2IModel:
    """Return a copy of the model with changed weights in all linear and convolutional layers."""
    model = copy.deepcopy(model)
    for part in model.module.modules():
        if isinstance(part, _COMPRESSED):
            part.weight.copy_(change(part.weight))
    return model


COMPRESSION = Audit(
    "compression",
    "The weights of all linear and convolutional layers are rounded to 8 or 4 bits, or the smallest are set to 0. "
    "Zhang et al. (2024) found that rounding language models to 4 bits brings back what unlearning removed; here, f1 "
    "would rise and the error in the hole fall. Measured on training images. Biases and activations are not rounded.",
    _findings,
)
