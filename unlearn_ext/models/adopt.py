"""What becomes of a module when a family wraps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from . import I2IModel


def adopt(model: I2IModel) -> None:
    """Puts a model's module in evaluation mode, and freezes all but E.

    Raises:
        UserError: its images have neither one channel nor three.
    """
    if model.channels not in (1, 3):
        raise UserError(f"the model takes images of {model.channels} channels; only 1 (grey) and 3 (RGB) are known.")
    model.module.eval().requires_grad_(False)
    for parameter in model.encoder_parameters():
        parameter.requires_grad_(True)
