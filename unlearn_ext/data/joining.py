"""Find the images of an earlier run again by their hashes, and join them with those of a new request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

import torch

from .sets import FORGET, LEFT_OUT, RETAIN, TRAINING, VALIDATION, ForgetRetain, NamedImage, digests
from .storage import empty

__all__ = ["join", "recover"]


def recover(name: str, listed: Sequence[NamedImage], found: Iterable[ForgetRetain], memory: float) -> ForgetRetain:
    """Return the images of an earlier run with the uses that they had there.

    Images are recognised by their SHA-256, so they may have been renamed or moved. Those that are not found are left
    out; the reason is that the file has changed, or that it is no longer there.

    Args:
        name: description of the images.
        listed: ``images.csv`` of the run.
        found: the images that are there now; those of ``listed`` are searched in all of them.
        memory: limit in GiB; a larger set is stored in a file instead of memory.
    """
    pixels: dict[tuple[str, str], torch.Tensor] = {}  # by set and hash
    files: dict[str, list[PurePath]] = {FORGET: [], RETAIN: []}
    prompts: dict[str, str] = {}
    known = {(image.set, image.sha256) for image in listed}
    for images in found:
        prompts = {**images.prompts, **prompts}  # of copies, the first one's, as for the pixels
        for image, row in _rows(images):
            pixels.setdefault((image.set, image.sha256), row)
            if (image.set, image.sha256) not in known:
                files[image.set].append(PurePath(image.file))
    now = [_as_found(image, pixels, files[image.set]) for image in listed]
    parts = []
    for side in (FORGET, RETAIN):
        for use in (TRAINING, VALIDATION):
            wanted = [pixels[side, image.sha256] for image in now if (image.set, image.used_as) == (side, use)]
            parts.append(_stacked(wanted, pixels.values(), memory))
    forget, forget_validation, retain, retain_validation = parts
    return ForgetRetain(name, forget, retain, forget_validation, retain_validation, tuple(now), prompts)


def join(new: ForgetRetain, earlier: ForgetRetain, memory: float) -> ForgetRetain:
    """Return the images of new requests together with those of an earlier run.

    The images to retain are those of ``new``, or of ``earlier`` if ``new`` has none. Images that are to be forgotten by
    any request, also by one whose images are not at hand any more, are left out of them.

    Args:
        new: the images of the new requests.
        earlier: the images of the earlier run, from :func:`recover`.
        memory: limit in GiB; a larger set is stored in a file instead of memory.
    """
    forget = torch.cat([new.forget, earlier.forget])
    forget_validation = torch.cat([new.forget_validation, earlier.forget_validation])
    gone = {*digests(forget), *digests(forget_validation)}
    gone |= {image.sha256 for part in (new, earlier) for image in part.listed if image.set == FORGET}
    source = new if len(new.retain) else earlier
    kept: dict[str, torch.Tensor] = {}
    listed = [image for part in (new, earlier) for image in part.listed if image.set == FORGET]
    for use, images in ((TRAINING, source.retain), (VALIDATION, source.retain_validation)):
        named = [image for image in source.listed if (image.set, image.used_as) == (RETAIN, use)]
        pairs = zip(named, digests(images), strict=True)
        out = [image.sha256 in gone or digest in gone for image, digest in pairs]
        rows = [row for row, is_out in zip(images, out, strict=True) if not is_out]
        kept[use] = images if not any(out) else _stacked(rows, [images[0]], memory)
        listed += [
            replace(image, used_as=LEFT_OUT, reason="is to be forgotten") if is_out else image
            for image, is_out in zip(named, out, strict=True)
        ]
    listed += [image for image in source.listed if (image.set, image.used_as) == (RETAIN, LEFT_OUT)]
    prompts = {**earlier.prompts, **new.prompts}
    return ForgetRetain(new.name, forget, kept[TRAINING], forget_validation, kept[VALIDATION], tuple(listed), prompts)


def _rows(images: ForgetRetain) -> Iterator[tuple[NamedImage, torch.Tensor]]:
    """Yield each image that was read, with its pixels."""
    for side, use, part in (
        (FORGET, TRAINING, images.forget), (FORGET, VALIDATION, images.forget_validation),
        (RETAIN, TRAINING, images.retain), (RETAIN, VALIDATION, images.retain_validation),
    ):  # fmt: skip
        named = [image for image in images.listed if (image.set, image.used_as) == (side, use)]
        yield from zip(named, part, strict=True)


def _as_found(image: NamedImage, pixels: dict[tuple[str, str], torch.Tensor], others: list[PurePath]) -> NamedImage:
    """Return an image as it was, or left out with the reason why it was not found."""
    if image.used_as == LEFT_OUT or (image.set, image.sha256) in pixels:
        return image
    mine = PurePath(image.file).parts[-2:]
    has_changed = any(mine == other.parts[-len(mine) :] for other in others)
    return replace(image, used_as=LEFT_OUT, reason="has changed" if has_changed else "is no longer there")


def _stacked(rows: Sequence[torch.Tensor], like: Iterable[torch.Tensor], memory: float) -> torch.Tensor:
    """Return images as one tensor; an empty one has the shape of ``like``."""
    first = next(iter(like), torch.empty(0, 0, 0, dtype=torch.uint8))
    stacked = empty((len(rows), *first.shape), first.dtype, memory)
    for row, image in zip(stacked, rows, strict=True):
        row.copy_(image)
    return stacked
