"""Inception-v3 with the weights that define FID (Heusel et al., arXiv 1706.08500), from torch-fidelity."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from ..._utils.cache import cache_folder, writable_cache_folder
from ...errors import UserError, require
from .pixels import rgb

__all__ = ["FILE", "SHA256", "URL", "InceptionV3"]

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class InceptionV3:
    """The standard features [N, 2048] of FID and KID, and the logits that define IS.

    Resizing, rounding to 8 bits and normalisation are those of the first TensorFlow implementation.

    Args:
        file: file with the published weights; by default they are downloaded to the cache.

    Raises:
        UserError: the file does not exist or has other weights, the download fails, or the extra ``inception`` is
            missing.
    """

    name = "inception-v3"
    size = 299

    def __init__(self, file: str | None = None) -> None:
        path = Path(file).expanduser() if file else _downloaded()
        _check(path)  # before torch-fidelity unpickles the file, which can run any code
        module = require("torch_fidelity.feature_extractor_inceptionv3", "inception").FeatureExtractorInceptionV3
        self.module = module(self.name, ["2048"], feature_extractor_weights_path=str(path))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features [N, 2048] of images, float32 [N, C, H, W] in [-1, 1]."""
        return self.module(((rgb(images) + 1) * 127.5).round().to(torch.uint8))[0]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [N, K] without the bias, as is usual for IS."""
        return features @ self.module.fc.weight.T

    def maps(self, images: torch.Tensor) -> tuple[()]:
        """Return no feature maps."""
        return ()


def _downloaded() -> Path:
    path = cache_folder() / FILE
    if not path.is_file():
        writable_cache_folder()
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the weights of Inception-v3 could not be downloaded ({error}): download {URL} on another computer, "
                "and give the file as inception-v3:FILE."
            ) from error
    return path


def _check(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the weights of Inception-v3 as inception-v3:FILE.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(
            f"{path} does not contain the weights that define FID: its SHA-256 is {digest[:8]}…, not {SHA256[:8]}…; "
            f"download them from {URL}."
        )
