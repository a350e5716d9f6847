"""Text prompts of images: from a text file beside each image, or from a column of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError, first_ten

__all__ = ["by_digest", "prompt_file", "read_prompt"]


def prompt_file(image: Path) -> Path | None:
    """Return the text file beside an image, such as ``lion.txt`` beside ``lion.png``; None if there is none."""
    file = image.with_suffix(".txt")
    return file if file.is_file() else None


def read_prompt(file: Path) -> str:
    """Return the text of a file in UTF-8 as one line, without spaces at its ends.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"the prompt {file} cannot be read: {reason}.") from error


def by_digest(images: Iterable[tuple[str, str, str | None]]) -> dict[str, str]:
    """Return the prompts of the images that have one, by the digest of their pixels.

    Args:
        images: name, digest and prompt of each image.

    Raises:
        UserError: images with the same pixels have different prompts.
    """
    prompts: dict[str, str] = {}
    differing: list[str] = []
    for name, digest, prompt in images:
        if prompt is not None and prompts.setdefault(digest, prompt) != prompt:
            differing.append(name)
    if differing:
        raise UserError(
            "images have the same pixels as another one, but another prompt: give copies the same prompt, or remove "
            f"them.{first_ten(differing)}"
        )
    return prompts
