"""T(x): what is taken away from an image before the model must give it back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import UserError


@dataclass(frozen=True)
class CenterCrop:
    """A square hole in the middle, filled with 0, the middle grey of images in [-1, 1].

    The hole's side is ``round(fraction · side)`` pixels along each axis; 0.5 hides a quarter of the area.

    Attributes:
        fraction: of a side, in (0, 1].

    Raises:
        UserError: the fraction is outside (0, 1].
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(
                f"center-crop needs a fraction of a side in (0, 1], for example 0.5, not {self.fraction:g}."
            )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] with the hole; the input is not written to."""
        height, width = images.shape[-2:]
        tall, wide = round(self.fraction * height), round(self.fraction * width)
        top, left = (height - tall) // 2, (width - wide) // 2
        corrupted = images.clone()
        corrupted[..., top : top + tall, left : left + wide] = 0
        return corrupted

    def __str__(self) -> str:
        return f"center-crop:{self.fraction:g}"


def parse(text: str) -> CenterCrop:
    """The task that a text such as ``"center-crop:0.5"`` names; without the number, half of a side.

    Raises:
        UserError: no such task, or the number cannot be read.
    """
    name, _, fraction = text.partition(":")
    if name != "center-crop":
        raise UserError(
            f"there is no task `{name}`; the one known is center-crop:FRACTION, for example center-crop:0.5."
        )
    if not fraction:
        return CenterCrop()
    try:
        return CenterCrop(float(fraction))
    except ValueError:
        raise UserError(
            f"center-crop needs a number after the colon, for example center-crop:0.5, not `{fraction}`."
        ) from None
