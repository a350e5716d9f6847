"""Decode many images into a forget set and a retain set; report all unusable images in one message."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from .._utils.file_hash import file_sha256
from ..errors import UserError, first_ten
from . import formats
from .decode import decode
from .prompts import by_digest
from .sets import FORGET, LEFT_OUT, RETAIN, ForgetRetain, NamedImage, check_validation, divide
from .storage import empty, gather

__all__ = ["Source", "read", "read_all"]


@dataclass(frozen=True)
class Source:
    """One encoded image.

    Attributes:
        name: name in messages.
        open: returns the path, or the content as a binary file object; called in a thread.
        prompt: the image's own prompt, if it has one.
    """

    name: str
    open: Callable[[], Path | BinaryIO]
    prompt: str | None = None


@dataclass(frozen=True)
class _Read:
    """The result of decoding one source, or the reason why it could not be decoded.

    ``digest`` is that of the pixels, ``sha256`` that of the file if there is one; both are hexadecimal.
    """

    name: str
    digest: str = ""
    sha256: str = ""
    several_frames: bool = False
    guessed: int | None = None
    reason: str = ""


def read(
    name: str,
    forget: Mapping[str, Sequence[Source]],
    retain: Sequence[Source],
    *,
    size: int,
    channels: int,
    validation: float,
    seed: int,
    skip_bad: bool,
    memory: float,
    partial: bool = False,
) -> ForgetRetain:
    """Decode both sets in threads, and split each into training and validation images.

    Gives one warning each for skipped images, for images of which only the first frame is used, for images whose value
    range is guessed, and for copies within a set, which are kept.

    Args:
        name: description of the images, for reports.
        forget: the images to forget of each request.
        retain: the images to retain.
        size: height and width in pixels of the model's images.
        channels: 1 for grey, 3 for RGB.
        validation: fraction of each set held out for validation; 0: none.
        seed: random seed of the split into training and validation images.
        skip_bad: skip images that cannot be decoded, instead of raising.
        memory: limit in GiB; a larger set is stored in a file instead of memory.
        partial: allow empty sets, such as those of images to be joined with others.

    Raises:
        UserError: an image cannot be decoded, the guessed ranges differ, an image is in both sets, or a set has too few
            images.
    """
    check_validation(validation)
    formats.pillow()  # before the threads start, which must not load plug-ins concurrently
    to_forget = [source for sources in forget.values() for source in sources]
    sides = [_read_side(sources, size, channels, memory) for sources in (to_forget, retain)]
    results = [result for results, _ in sides for result in results]
    _report_bad([result for result in results if result.reason], skip_bad)
    _mention_frames([result.name for result in results if result.several_frames])
    _mention_guesses([result for result in results if result.guessed])
    images, good = zip(*(_good(*side, memory) for side in sides), strict=True)
    of_request = [request for request, sources in forget.items() for _ in sources]
    requests = dict.fromkeys(forget, 0)
    for request, result in zip(of_request, sides[0][0], strict=True):
        requests[request] += not result.reason
    divided = divide(
        name,
        *images,
        validation=validation,
        seed=seed,
        requests=requests,
        names=([result.name for result in good[0]], [result.name for result in good[1]]),
        sha256=([result.sha256 for result in good[0]], [result.sha256 for result in good[1]]),
        memory=memory,
        partial=partial,
    )
    _mention_copies("forget", good[0])
    _mention_copies("retain", good[1])
    bad = [*_bad(FORGET, of_request, sides[0][0]), *_bad(RETAIN, [""] * len(retain), sides[1][0])]
    read_ones = zip([*to_forget, *retain], results, strict=True)
    prompts = by_digest((source.name, result.digest, source.prompt) for source, result in read_ones if result.digest)
    return replace(divided, listed=(*divided.listed, *bad), prompts=prompts)


def _bad(side: str, requests: Sequence[str], results: Sequence[_Read]) -> list[NamedImage]:
    """Return the images that could not be read."""
    return [
        NamedImage(side, request, result.name, result.sha256, LEFT_OUT, result.reason)
        for request, result in zip(requests, results, strict=True)
        if result.reason
    ]


def read_all(sources: Sequence[Source], *, size: int, channels: int, skip_bad: bool, memory: float) -> torch.Tensor:
    """Decode images into one set, uint8 [N, C, size, size], with the warnings and errors of :func:`read`."""
    formats.pillow()  # before the threads start, which must not load plug-ins concurrently
    results, pixels = _read_side(sources, size, channels, memory)
    _report_bad([result for result in results if result.reason], skip_bad)
    _mention_frames([result.name for result in results if result.several_frames])
    _mention_guesses([result for result in results if result.guessed])
    images, _ = _good(results, pixels, memory)
    return images


def _read_side(sources: Sequence[Source], size: int, channels: int, memory: float) -> tuple[list[_Read], torch.Tensor]:
    """Return the result of each source, and the pixels, uint8 [N, C, H, W]; rows of failed sources are undefined."""
    pixels = empty((len(sources), channels, size, size), torch.uint8, memory)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(_read_one, size=size, channels=channels), sources, pixels.numpy())), pixels


def _read_one(source: Source, row: np.ndarray, size: int, channels: int) -> _Read:
    opened: Path | BinaryIO | None = None
    try:
        opened = source.open()
        decoded = decode(opened, size, channels)
        row[...] = decoded.pixels
        digest = hashlib.sha256(row.tobytes()).hexdigest()
        sha256 = file_sha256(opened) if isinstance(opened, Path) else digest
    except Exception as error:  # decoders raise many types on broken input
        return _Read(source.name, sha256=_sha256_if_readable(opened), reason=_reason(error))
    return _Read(source.name, digest, sha256, decoded.several_frames, decoded.guessed)


def _sha256_if_readable(opened: Path | BinaryIO | None) -> str:
    """Return the SHA-256 of a file that could not be decoded; "" if it cannot even be read, or is no regular file."""
    try:
        return file_sha256(opened) if isinstance(opened, Path) and opened.is_file() else ""
    except OSError:
        return ""


def _good(results: Sequence[_Read], pixels: torch.Tensor, memory: float) -> tuple[torch.Tensor, list[_Read]]:
    """Return the pixels and results without the images that could not be read."""
    rows = [row for row, result in enumerate(results) if not result.reason]
    if len(rows) == len(results):
        return pixels, list(results)
    return gather(pixels, torch.tensor(rows, dtype=torch.int64), memory), [results[row] for row in rows]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _report_bad(bad: Sequence[_Read], skip: bool) -> None:
    if not bad:
        return
    what = f"{len(bad)} image{'s' if len(bad) > 1 else ''} cannot be read"
    lines = first_ten([f"{result.name}: {result.reason}" for result in bad])
    if not skip:
        raise UserError(f"{what}: repair or remove, or skip with --skip-bad (from Python, skip_bad=True).{lines}")
    warnings.warn(f"{what}, left out:{lines}", stacklevel=4)


def _mention_frames(names: Sequence[str]) -> None:
    if names:
        many = f"{len(names)} images have" if len(names) > 1 else "1 image has"
        warnings.warn(f"{many} several frames or pages; only the first is used:{first_ten(names)}", stacklevel=4)


def _mention_guesses(guesses: Sequence[_Read]) -> None:
    """Warn of guessed ranges; raise if they differ, since some images might then be 257 times too bright."""
    lines = first_ten([f"{result.name}: 0 to {result.guessed}" for result in guesses])
    if len({result.guessed for result in guesses}) > 1:
        raise UserError(
            "images hold whole numbers of 32 bits or floats, whose range their files do not say, and seem to be of "
            f"different ones: save them with 8 or 16 bits.{lines}"
        )
    if guesses:
        many = f"{len(guesses)} images hold" if len(guesses) > 1 else "1 image holds"
        warnings.warn(
            f"{many} whole numbers of 32 bits or floats, whose range the file does not say; they are taken to reach "
            f"from 0 to {guesses[0].guessed}:{first_ten([result.name for result in guesses])}",
            stacklevel=4,
        )


def _mention_copies(side: str, results: Sequence[_Read]) -> None:
    copies = len(results) - len({result.digest for result in results})
    if copies:
        warnings.warn(
            f"{copies} image{'s' if copies > 1 else ''} in the {side} set repeat{'' if copies > 1 else 's'} another in "
            "it; all are kept, so those pictures weigh more, and a copy may be among the validation images.",
            stacklevel=4,
        )
