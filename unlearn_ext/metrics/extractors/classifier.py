"""A small classifier of a built-in data set, trained once and cached."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ..._utils.atomic_io import write_atomically
from ..._utils.cache import cache_folder, writable_cache_folder
from ...data import SIDE, labelled
from ...errors import require
from ...unlearning.batches import Shuffled, pixels
from .pixels import resized

__all__ = ["HELD_OUT", "Classifier", "Recipe", "train", "trained"]

HELD_OUT = 5  # images [::5] of a data set are held out to test its classifier


@dataclass(frozen=True)
class Recipe:
    """Architecture and training of the classifier; changing any value trains a new one.

    Attributes:
        channels: numbers of channels of the convolutions; each convolution halves the side.
        features: number of features. It must be lower than the number of compared images, otherwise FID is mostly bias.
        steps: number of optimizer steps.
        batch_size: number of images per step.
        lr: peak learning rate of a one-cycle schedule.
        distortion: standard deviation of each entry of the random affine maps that distort images, around the identity.
        seed: random seed.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    features: int = 64
    steps: int = 2500
    batch_size: int = 64
    lr: float = 1e-2
    distortion: float = 0.1
    seed: int = 0


class Classifier(nn.Module):
    """Features [N, D], the ten classes of a built-in data set, and one feature map for each convolution.

    Args:
        name: name of the extractor.
        recipe: the architecture.
    """

    size = SIDE

    def __init__(self, name: str, recipe: Recipe) -> None:
        super().__init__()
        self.name = name
        widths = (1, *recipe.channels)
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        side = SIDE // 2 ** len(recipe.channels)
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side**2, recipe.features),
            nn.ReLU(),
            nn.LayerNorm(recipe.features, elementwise_affine=False),  # fixes the scale: KID's kernel is cubic
        )
        self.head = nn.Linear(recipe.features, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features [N, D] of images, float32 [N, C, H, W] in [-1, 1]."""
        return self.body(self.maps(images)[-1])

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, 10] of features."""
        return self.head(features)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps [N, c, h, w] of the convolutions, from fine to coarse."""
        hidden, maps = resized(images.mean(1, keepdim=True), self.size), []
        for convolution in self.convolutions:
            hidden = convolution(hidden)
            maps.append(hidden)
        return maps


def trained(dataset: str, recipe: Recipe | None = None) -> Classifier:
    """Return the classifier of a built-in data set from the cache, or train it; every fifth image is held out.

    Args:
        dataset: ``"mnist"`` or ``"fashion-mnist"``.
        recipe: architecture and training.

    Raises:
        UserError: the images are not available, or the cache folder is not writable, which is checked before training.
    """
    recipe = recipe or Recipe()
    safetensors = require("safetensors.torch", "images")
    images, labels = (part[torch.arange(len(part)) % HELD_OUT != 0] for part in labelled(dataset))
    images = pixels(images)
    name = f"{dataset}-cnn"
    path = cache_folder() / f"{name}-{_digest(images, labels, recipe)}.safetensors"
    if not path.is_file():
        writable_cache_folder()
        write_atomically(path, safetensors.save(train(name, images, labels, recipe).state_dict()))
    classifier = Classifier(name, recipe)
    classifier.load_state_dict(safetensors.load_file(path))
    return classifier.eval().requires_grad_(False)


def train(name: str, images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> Classifier:
    """Train a classifier with the cross-entropy loss; the global random number generator does not change.

    Args:
        name: name of the extractor.
        images: float32 [N, 1, 32, 32] in [-1, 1].
        labels: int64 [N], 0…9.
        recipe: architecture and training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        classifier = Classifier(name, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps)
    batches = Shuffled(len(images), recipe.batch_size, generator)
    for _ in range(recipe.steps):
        index = next(batches)
        features = classifier(_distorted(images[index], recipe.distortion, generator))
        loss = F.cross_entropy(classifier.logits(features), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


def _distorted(images: torch.Tensor, distortion: float, generator: torch.Generator) -> torch.Tensor:
    """Return the images, each with a small random affine distortion."""
    maps = torch.eye(2, 3) + distortion * torch.randn(len(images), 2, 3, generator=generator)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _digest(images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> str:
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    digest.update(repr(asdict(recipe)).encode())
    return digest.hexdigest()[:16]
