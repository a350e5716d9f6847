"""Requests to forget: the images of each, and the ε that a run holds them to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .objectives import Encode, Objectives
from .tables import NOT_AT_HAND, TRAINED, ImageF1, RequestRow

__all__ = ["Absent", "Judged", "Request", "judge"]


@dataclass(frozen=True)
class Request:
    """A request whose images are at hand.

    Attributes:
        name: name of the request.
        objectives: f1 over its training images, and f2.
        validation: the same over held-out images; None if there are none.
        files: names of its training images, in their order.
        since: name of the folder of the earlier run that the request comes from; empty for a run's own.
    """

    name: str
    objectives: Objectives
    validation: Objectives | None
    files: Sequence[str]
    since: str = ""


@dataclass(frozen=True)
class Absent:
    """A request of an earlier run whose images are not at hand, so that its f1 cannot be computed.

    Attributes:
        name: name of the request.
        epsilon: its ε in the earlier run.
        f1_unmodified: f1 of the unmodified model, as the earlier run measured it.
        images: number of its training images in the earlier run.
        since: name of the folder of the run that the request comes from.
    """

    name: str
    epsilon: float
    f1_unmodified: float
    images: int
    since: str

    def row(self, point: str) -> RequestRow:
        """Return its row in ``requests.csv`` for a model."""
        unknown = math.nan
        return RequestRow(
            point, self.name, self.epsilon, self.f1_unmodified, unknown, unknown, self.images, unknown, "", -1,
            NOT_AT_HAND, self.since,
        )  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What a model does to a request.

    Attributes:
        f1: f1 over the training images.
        f1_validation: f1 over held-out images; NaN if there are none.
        images: f1 of each training image, float64 [N].
    """

    f1: float
    f1_validation: float
    images: torch.Tensor

    def row(self, request: Request, point: str, epsilon: float, f1_unmodified: float) -> RequestRow:
        """Return its row in ``requests.csv``."""
        worst = int(self.images.argmax())
        return RequestRow(
            point, request.name, epsilon, f1_unmodified, self.f1, self.f1_validation, len(self.images),
            self.images[worst].item(), request.files[worst], int((self.images > epsilon).sum()), TRAINED, request.since,
        )  # fmt: skip

    def rows(self, request: Request, point: str, unmodified: torch.Tensor) -> list[ImageF1]:
        """Return its rows in ``per_image.csv``; ``unmodified`` is f1 of each image in the unmodified model."""
        values = zip(request.files, self.images.tolist(), unmodified.tolist(), strict=True)
        return [ImageF1(point, request.name, *each) for each in values]


def judge(request: Request, encode: Encode, f1: float) -> Judged:
    """Return what a model does to a request, whose f1 over the training images is known."""
    validation = math.nan if request.validation is None else request.validation.evaluate_f1(encode)
    return Judged(f1, validation, request.objectives.per_image(encode))
