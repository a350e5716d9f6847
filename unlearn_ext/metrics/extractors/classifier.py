"""A small classifier of a built-in set, trained once on its labels and kept in the cache."""

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

HELD_OUT = 5  # images [::5] of a set are for judging its classifier


@dataclass(frozen=True)
class Recipe:
    """How the classifier is built and trained; a change of any value trains anew.

    Attributes:
        channels: of the convolutions, each of which halves the side.
        features: of the layer that is looked at. Fewer than there are images to compare, or FID is mostly bias.
        steps: optimizer steps.
        batch_size: images a step.
        lr: peak learning rate of a one-cycle schedule.
        distortion: standard deviation of the affine maps that images are distorted by, per entry from the identity.
        seed: of everything random.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    features: int = 64
    steps: int = 2500
    batch_size: int = 64
    lr: float = 1e-2
    distortion: float = 0.1
    seed: int = 0


class Classifier(nn.Module):
    """Features [N, D], the ten classes of a built-in set, and a feature map of each convolution.

    Args:
        name: of the extractor.
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
            nn.LayerNorm(recipe.features, elementwise_affine=False),  # KID's kernel is cubic in the features' scale
        )
        self.head = nn.Linear(recipe.features, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(self.maps(images)[-1])

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        hidden, maps = resized(images.mean(1, keepdim=True), self.size), []
        for convolution in self.convolutions:
            hidden = convolution(hidden)
            maps.append(hidden)
        return maps


def trained(dataset: str, recipe: Recipe | None = None) -> Classifier:
    """The classifier of a built-in set, trained now, or from the cache; every fifth image is held out.

    Args:
        dataset: ``"mnist"`` or ``"fashion-mnist"``.
        recipe: architecture and training.

    Raises:
        UserError: the images cannot be had, or, before anything is trained, the cache folder cannot be written to.
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
    """Minimise the cross-entropy.

    Args:
        name: of the extractor.
        images: float32 [N, 1, 32, 32] in [-1, 1].
        labels: int64 [N], 0…9.
        recipe: architecture and training; the caller's random state is left alone.
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
    """Each image shifted, turned, stretched and sheared a little, by chance."""
    maps = torch.eye(2, 3) + distortion * torch.randn(len(images), 2, 3, generator=generator)
    grid = F.affine_grid(maps, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _digest(images: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> str:
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    digest.update(repr(asdict(recipe)).encode())
    return digest.hexdigest()[:16]
