"""A forget set and a retain set without common images, each with held-out validation images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..errors import UserError, first_ten
from .storage import gather

__all__ = [
    "FORGET",
    "LEFT_OUT",
    "RETAIN",
    "TRAINING",
    "USES",
    "VALIDATION",
    "ForgetRetain",
    "NamedImage",
    "check_validation",
    "digests",
    "divide",
    "unnamed",
]

FORGET, RETAIN = "forget", "retain"  # sets; the first is also the name of a request without a name
TRAINING, VALIDATION, LEFT_OUT = USES = ("training", "validation", "left out")  # what an image is used for


@dataclass(frozen=True)
class NamedImage:
    """An image that was named for a run, and what it is used for: a row of ``images.csv``.

    Attributes:
        set: ``"forget"`` or ``"retain"``.
        request: name of the request; empty for images to retain.
        file: path of the file; ``label/index`` for built-in images, the row of a data set.
        sha256: SHA-256 of the file's bytes, or of the decoded pixels if there is no file; hexadecimal.
        used_as: ``"training"``, ``"validation"`` or ``"left out"``.
        reason: why it is left out.
    """

    set: str
    request: str
    file: str
    sha256: str
    used_as: str
    reason: str = ""


@dataclass(frozen=True)
class ForgetRetain:
    """A forget set and a retain set, each with a held-out validation part.

    All four are uint8 [N, C, H, W] on the CPU. Images of several requests follow each other in the forget parts.

    Attributes:
        name: description of the images, for reports.
        forget: training images whose owners asked to be forgotten.
        retain: training images of everyone else.
        forget_validation: held-out images of the forget classes; may be empty.
        retain_validation: held-out images of the retain classes; may be empty.
        listed: every image that was named, those of a part in the part's order.
        prompts: prompts of the images that have their own, by the SHA-256 of their pixels, see :func:`digests`.
    """

    name: str
    forget: torch.Tensor
    retain: torch.Tensor
    forget_validation: torch.Tensor
    retain_validation: torch.Tensor
    listed: tuple[NamedImage, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def requests(self) -> list[str]:
        """Names of the requests, in the order of their images."""
        named = dict.fromkeys(image.request for image in self.listed if image.set == FORGET)
        return list(named) or [FORGET]

    @property
    def held_out(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The validation images to forget and to retain; None if there are none."""
        parts = self.forget_validation, self.retain_validation
        return parts if all(map(len, parts)) else None

    def to_forget(self, use: str = TRAINING) -> dict[str, torch.Tensor]:
        """Return the images to forget of each request that has some, for training or for validation."""
        images = self.forget if use == TRAINING else self.forget_validation
        if not self.listed:
            return {FORGET: images}
        counts = [len(self.files(request, use)) for request in self.requests]
        return {name: part for name, part in zip(self.requests, images.split(counts), strict=True) if len(part)}

    def files(self, request: str, use: str = TRAINING) -> list[str]:
        """Return the files of a request's images, in the order of :meth:`to_forget`."""
        return [i.file for i in self.listed if (i.set, i.request, i.used_as) == (FORGET, request, use)]

    def count(self, side: str, use: str, request: str | None = None) -> int:
        """Return the number of images of a set with a use, of one request or of all."""
        found = [image for image in self.listed if (image.set, image.used_as) == (side, use)]
        return sum(request is None or image.request == request for image in found)

    def renamed(self, names: Mapping[str, str]) -> ForgetRetain:
        """Return the same images with other names of requests, by their present names."""
        return replace(
            self, listed=tuple(replace(i, request=names[i.request]) if i.set == FORGET else i for i in self.listed)
        )

    def some(self, share: float, reason: str) -> ForgetRetain:
        """Return the first images of each part, and leave out the others for a reason."""
        parts = {
            (FORGET, TRAINING): self.forget, (FORGET, VALIDATION): self.forget_validation,
            (RETAIN, TRAINING): self.retain, (RETAIN, VALIDATION): self.retain_validation,
        }  # fmt: skip
        fewer = {part: images[: round(share * len(images))] for part, images in parts.items()}
        left = {part: len(images) for part, images in fewer.items()}
        listed = []
        for image in self.listed:
            part = image.set, image.used_as
            is_out = part in left and left[part] == 0
            listed.append(replace(image, used_as=LEFT_OUT, reason=reason) if is_out else image)
            left[part] = max(left.get(part, 0) - 1, 0)
        forget, forget_validation, retain, retain_validation = fewer.values()
        return replace(
            self, forget=forget, retain=retain, forget_validation=forget_validation,
            retain_validation=retain_validation, listed=tuple(listed),
        )  # fmt: skip

    def without_retain(self) -> ForgetRetain:
        """Return the images to forget alone."""
        listed = tuple(image for image in self.listed if image.set == FORGET)
        return replace(self, retain=self.retain[:0], retain_validation=self.retain_validation[:0], listed=listed)


def divide(
    name: str,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    validation: float = 0.2,
    seed: int = 0,
    requests: Mapping[str, int] | None = None,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
    sha256: tuple[Sequence[str], Sequence[str]] | None = None,
    memory: float = math.inf,
    partial: bool = False,
) -> ForgetRetain:
    """Hold out a random fraction of each set, and of each request, for validation.

    Args:
        name: description of the images.
        forget: uint8 [N, C, H, W], or float in [-1, 1].
        retain: uint8 [M, C, H, W], or float in [-1, 1].
        validation: fraction held out, from 0 to below 1; at least one image is held out and at least one is not. 0:
            every image is used for training.
        seed: random seed of the shuffle.
        requests: number of images of each request, which follow each other in ``forget``; by default all are of one
            request.
        names: names of the N and the M images; by default their positions.
        sha256: SHA-256 of the N and the M images; by default of their pixels.
        memory: limit in GiB; a larger part is stored in a file instead of memory.
        partial: allow empty sets, such as those of images to be joined with others.

    Raises:
        UserError: ``validation`` is out of range, a set or request has too few images, or an image with the same pixels
            is in both sets.
    """
    check_validation(validation)
    requests = {FORGET: len(forget)} if requests is None else requests
    if not partial and min(*requests.values(), len(retain)) < (2 if validation else 1):
        raise UserError(
            "both sets need at least two images: one to train on and one to validate with; so does each request. With "
            "--validation 0, one is enough."
            if validation
            else "both sets, and each request, need at least one image."
        )
    pixels = [list(digests(images)) for images in (forget, retain)]
    names = names or ([f"forget[{i}]" for i in range(len(forget))], [f"retain[{i}]" for i in range(len(retain))])
    _refuse_shared(pixels, names)
    generator = torch.Generator().manual_seed(seed)
    tensors, listed = [], []
    for number, (side, images, groups) in enumerate(
        ((FORGET, forget, requests), (RETAIN, retain, {"": len(retain)})),
    ):
        rows = _drawn(groups, validation, generator)
        for use in (TRAINING, VALIDATION):
            order = [(request, row) for request, uses in rows.items() for row in uses[use]]
            tensors.append(gather(images, torch.tensor([row for _, row in order], dtype=torch.int64), memory))
            listed += [
                NamedImage(side, request, names[number][row], (sha256 or pixels)[number][row], use)
                for request, row in order
            ]
    forget, forget_validation, retain, retain_validation = tensors
    return ForgetRetain(name, forget, retain, forget_validation, retain_validation, tuple(listed))


def unnamed(
    forget: Mapping[str, torch.Tensor],
    retain: torch.Tensor,
    held_out: tuple[Mapping[str, torch.Tensor], torch.Tensor] | None,
) -> tuple[NamedImage, ...]:
    """Return the list of images that have no names: each is named by its position, such as ``forget[0]``.

    Args:
        forget: training images of each request.
        retain: training images to retain.
        held_out: the same for validation, if there are any.
    """
    listed = []
    for use, (to_forget, to_retain) in ((TRAINING, (forget, retain)), (VALIDATION, held_out or ({}, retain[:0]))):
        sets = [(FORGET, request, request, images) for request, images in to_forget.items()]
        for side, request, name, images in [*sets, (RETAIN, "", RETAIN, to_retain)]:
            name = name if use == TRAINING else f"{name}_validation"
            listed += [
                NamedImage(side, request, f"{name}[{number}]", digest, use)
                for number, digest in enumerate(digests(images))
            ]
    return tuple(listed)


def check_validation(validation: float) -> None:
    """Raise ``UserError`` if the fraction of images to hold out is not in [0, 1)."""
    if not 0 <= validation < 1:
        raise UserError(
            f"validation is {validation!r}; it is the fraction of the images that is held out, 0 or more and below 1."
        )


def digests(images: torch.Tensor) -> Iterator[str]:
    """Yield the SHA-256 of the pixels of each image, hexadecimal."""
    return (hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest() for image in images)


def _drawn(groups: Mapping[str, int], validation: float, generator: torch.Generator) -> dict[str, dict[str, list[int]]]:
    """Return the rows of each group, shuffled: those for training and those held out."""
    rows, start = {}, 0
    for group, count in groups.items():
        order = (start + torch.randperm(count, generator=generator)).tolist()
        held_out = min(max(round(validation * count), 1), count - 1) if validation and count else 0
        rows[group] = {TRAINING: order[held_out:], VALIDATION: order[:held_out]}
        start += count
    return rows


def _refuse_shared(pixels: Sequence[Sequence[str]], names: tuple[Sequence[str], Sequence[str]]) -> None:
    (to_forget, to_retain), (forget_names, retain_names) = pixels, names
    retained = dict(zip(reversed(to_retain), reversed(retain_names), strict=True))  # of copies, name the first
    pairs = [
        f"{name} = {retained[digest]}"
        for digest, name in zip(to_forget, forget_names, strict=True)
        if digest in retained
    ]
    if pairs:
        raise UserError(
            f"{len(pairs)} image{'s are' if len(pairs) > 1 else ' is'} in the forget set and in the retain set: "
            f"the same image cannot be forgotten and retained; remove it from one of them.{first_ten(pairs)}"
        )
