"""Compare the images and models that the evidence lists with those that are at hand."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import ForgetRetain
from ..data.decode import decode
from ..data.prompts import prompt_file, read_prompt
from ..data.sets import digests
from ..errors import UserError
from ..models import I2IModel
from ..models.doors import CONFIGURATIONS
from ..models.prompts import Prompts
from .hashing import folder_files
from .lines import CONTRADICTS, HOLDS, NOT_AT_HAND, NOTE, Line
from .places import find_image, has_files, model_place, roots, sources_of
from .recompute import Sets
from .tables import metrics_of

__all__ = ["AtHand", "Load"]

_SHOWN = 10  # files named in one line

Load = Callable[[], ForgetRetain]
Image = Path | torch.Tensor


class AtHand:
    """What the evidence of a run lists and is still there, unchanged; known once :meth:`images` and :meth:`models` ran.

    Args:
        run: folder of the run.
        content: its evidence.
        load: returns the images of built-in sets and of data sets, which are no files.

    Attributes:
        sources: the options of the run.
        before: folder or file of the model before; None if it is not at hand as it was.
        configuration: the configuration of that file, if it has one.
        after: names of the run's models that are at hand as they were.
    """

    def __init__(self, run: Path, content: Mapping[str, Any], load: Load | None) -> None:
        self.sources = sources_of(run)
        self.before: Path | None = None
        self.configuration: Path | None = None
        self.after: set[str] = set()
        self._run, self._content, self._load = run, content, load
        self._found: dict[int, Image] = {}  # by position in the list of images
        self._prompts: Mapping[str, str] = {}  # of images that are no files, by their digests

    def images(self) -> Iterator[Line]:
        """Compare every image with its SHA-256, and yield lines for each set and request."""
        groups: dict[tuple[str, str], list[int]] = {}
        for position, row in enumerate(self._content["images"]):
            if row["sha256"]:  # else it could not even be read
                groups.setdefault((row["set"], row["request"]), []).append(position)
        if not groups:
            yield Line(NOTE, "the evidence lists no images: the run was made by an earlier version.")
            return
        find = self._finder()
        for (side, request), positions in groups.items():
            yield from self._group(f"images to {side}" + (f", request {request}" if request else ""), positions, find)

    def models(self, model_before: Path | None) -> Iterator[Line]:
        """Compare every file of the models with its SHA-256.

        Args:
            model_before: folder or file of the model before, if it is not where it was.
        """
        before = self._content["models"]["before"]
        if before is None:
            yield Line(NOTE, "the evidence does not say what the model before was.")
        else:
            place = model_before or model_place(before["named"], self.sources)
            companions = self._companions(place, before["files"]) if place and place.is_file() else []
            lines = _compared(f"model before, {before['named']}", place, before["files"], companions)
            self.before = place if _all_hold(lines) else None
            self.configuration = next((file for file in companions if file.suffix in CONFIGURATIONS), None)
            yield from lines
        for model in self._content["models"]["after"]:
            place = self._run / model["name"]
            lines = _compared(f"model {model['name']}", place if place.is_dir() else None, model["files"])
            if _all_hold(lines):
                self.after.add(model["name"])
            yield from lines

    def training_images(self, model: I2IModel) -> Sets:
        """Return the training images, in the order of training, decoded for a model."""
        listed = self._content["images"]
        retain = [number for number, row in enumerate(listed) if (row["set"], row["used_as"]) == ("retain", "training")]
        forget: dict[str, list[int]] = {}
        for position, row in enumerate(listed):
            if (row["set"], row["used_as"]) == ("forget", "training"):
                forget.setdefault(row["request"], []).append(position)
        images = {request: self._stacked(chosen, model) for request, chosen in forget.items()}
        return Sets(images, self._stacked(retain, model))

    def prompts(self, images: Sets, model: I2IModel) -> tuple[Prompts, int]:
        """Return the prompts of the training images, read again as for the run, and how many of these have changed.

        Args:
            images: the training images.
            model: the model for which they are decoded.
        """
        own = dict(self._prompts)
        for image in self._found.values():
            if isinstance(image, Path) and (file := prompt_file(image)):
                (digest,) = digests(_pixels(image, model)[None])
                own.setdefault(digest, read_prompt(file))
        parts = [part for part in (*images.forget.values(), images.retain) if part is not None]
        known = list(itertools.chain(*map(digests, parts)))
        prompts = Prompts.filled(str(self.sources.get("prompt") or ""), own, known)
        try:
            record = metrics_of(self._run).get("prompts")
        except UserError:  # the line about the tables says so
            record = None
        return prompts, prompts.changed(record, known) if record else 0

    def _group(
        self, name: str, positions: Sequence[int], find: Callable[[Mapping[str, Any]], tuple[Image | None, bool]]
    ) -> Iterator[Line]:
        changed: list[str] = []
        missing: list[str] = []
        for position in positions:
            row = self._content["images"][position]
            image, is_same = find(row)
            if image is None:
                missing.append(row["file"])
            elif not is_same:
                changed.append(row["file"])
            else:
                self._found[position] = image
        if good := len(positions) - len(changed) - len(missing):
            yield Line(HOLDS, f"{name}: {good} of {len(positions)} are at hand and unchanged.")
        for file in changed:
            yield Line(CONTRADICTS, f"{name}: {file} was changed.")
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            named = ", ".join(missing[:_SHOWN]) + more
            yield Line(NOT_AT_HAND, f"{name}: {len(missing)} of {len(positions)}: {named}.")

    def _companions(self, place: Path, recorded: Mapping[str, str]) -> list[Path]:
        """Return the files that were recorded together with a file: beside it, or where the options name them."""
        named = Path(self.sources.get("model_config") or "")
        found = []
        for name in (name for name in recorded if name != place.name):
            found += [path for path in (place.with_name(name), named) if path.name == name and path.is_file()][:1]
        return found

    def _finder(self) -> Callable[[Mapping[str, Any]], tuple[Image | None, bool]]:
        """Return a function that finds an image; its result is the image, or None, and whether it is unchanged."""
        if has_files(self.sources):
            folders = roots(self._run)
            return lambda row: find_image(row["file"], row["sha256"], folders)
        try:
            images = self._load() if self._load else None
        except UserError:
            images = None
        if images is None:
            return lambda row: (None, False)
        self._prompts = images.prompts
        parts = (images.forget, images.forget_validation, images.retain, images.retain_validation)
        pixels = {hashlib.sha256(image.numpy().tobytes()).hexdigest(): image for part in parts for image in part}
        any_image = images.retain[0]
        return lambda row: (pixels.get(row["sha256"], any_image), row["sha256"] in pixels)

    def _stacked(self, chosen: Sequence[int], model: I2IModel) -> torch.Tensor | None:
        """Return images at some positions of the list, [N, C, H, W]; None if one is not at hand, or there is none."""
        found = [self._found[position] for position in chosen if position in self._found]
        if not found or len(found) < len(chosen):
            return None
        return torch.stack([_pixels(image, model) for image in found])


def _all_hold(lines: Sequence[Line]) -> bool:
    return all(line.status == HOLDS for line in lines)


def _compared(
    subject: str, place: Path | None, recorded: Mapping[str, str], companions: Sequence[Path] = ()
) -> list[Line]:
    """Compare the files of a model with those recorded."""
    if place is None:
        return [Line(NOT_AT_HAND, f"{subject}.")]
    there = folder_files(place, companions)
    if there == recorded:
        return [Line(HOLDS, f"{subject}: {len(there)} file{'' if len(there) == 1 else 's'}, unchanged.")]
    lines = []
    for name in sorted(there.keys() | recorded.keys()):
        if there.get(name) != recorded.get(name):
            what = "is missing" if name not in there else "was added" if name not in recorded else "was changed"
            lines.append(Line(CONTRADICTS, f"{subject}: {name} {what}."))
    return lines


def _pixels(image: Image, model: I2IModel) -> torch.Tensor:
    """Return an image as the model gets it, uint8 [C, H, W]."""
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(decode(image, model.size, model.channels).pixels)
