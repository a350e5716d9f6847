"""A small VQ-GAN for the built-in sets, trained once as an inpainting model and kept in the cache."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from .batches import Shuffled, pixels
from .cache import cache_folder
from .data import ForgetRetain
from .errors import require
from .models.vqgan import VQGAN
from .progress import Callback, Progress, Throttle


@dataclass(frozen=True)
class Recipe:
    """How the model is built and trained; a change of any value trains anew.

    Attributes:
        channels: of the blocks, from full resolution down; each but the first halves the side.
        latent_channels: of the latents, and of the codebook's vectors.
        codes: vectors in the codebook.
        steps: optimizer steps.
        continuous: share of the steps before quantisation begins.
        batch_size: images a step.
        lr: peak learning rate of a one-cycle schedule.
    """

    channels: tuple[int, ...] = (8, 32, 64)
    latent_channels: int = 8
    codes: int = 256
    steps: int = 400
    continuous: float = 0.3
    batch_size: int = 64
    lr: float = 3e-3


def pretrained(
    data: ForgetRetain,
    task: Callable[[torch.Tensor], torch.Tensor],
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Callback | None = None,
) -> VQGAN:
    """A VQ-GAN that fills in what ``task`` takes away, trained on the training part of both sets, or from the cache.

    Args:
        data: whose ``forget`` and ``retain`` images it learns; the validation parts stay unseen.
        task: T.
        seed: of initial weights and minibatches.
        recipe: architecture and training.
        progress: called at most ten times a second while training, with f2 the training loss.
    """
    recipe = recipe or Recipe()
    images = pixels(torch.cat([data.forget, data.retain]))
    folder = cache_folder() / f"vqgan-{_digest(images, task, seed, recipe)}"
    if not folder.is_dir():
        _save_atomically(train(images, task, seed, recipe, progress), folder)
    return VQGAN.from_pretrained(folder)


def train(
    images: torch.Tensor,
    task: Callable[[torch.Tensor], torch.Tensor],
    seed: int,
    recipe: Recipe,
    progress: Callback | None = None,
) -> VQGAN:
    """Minimise L1 + L2 between image and reconstruction plus the codebook's loss (van den Oord et al., 2017).

    The first steps leave the quantiser out; then the codebook is filled with latents drawn at random. Started from its
    own tiny weights instead, most of the codebook is never used.

    Args:
        images: float32 [N, C, S, S] in [-1, 1].
        task: T.
        seed: of initial weights and minibatches; the caller's random state is left alone.
        recipe: architecture and training.
        progress: called at most ten times a second.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _new_module(images.shape[1], images.shape[-1], recipe)
    generator = torch.Generator().manual_seed(seed)
    # Channels last: these thin convolutions take about a third less time on CPU.
    module = module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps, pct_start=0.15)
    batches, throttle = Shuffled(len(images), recipe.batch_size, generator), Throttle()
    quantised_from = round(recipe.continuous * recipe.steps)
    for step in range(recipe.steps):
        if step == quantised_from:
            _fill_codebook(module, task(images[next(batches)]), generator)
        batch = images[next(batches)]
        latents = module.encode(task(batch)).latents
        output = module.decode(latents, force_not_quantize=step < quantised_from)
        loss = F.l1_loss(output.sample, batch) + F.mse_loss(output.sample, batch) + output.commit_loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None and throttle.due():
            progress(Progress("pretrain", 0, 1, step + 1, recipe.steps, math.nan, loss.item(), math.nan))
    return VQGAN(module.to(memory_format=torch.contiguous_format))


def _new_module(channels: int, size: int, recipe: Recipe) -> torch.nn.Module:
    blocks = len(recipe.channels)
    return require("diffusers", "images").VQModel(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=recipe.channels,
        latent_channels=recipe.latent_channels,
        norm_num_groups=min(8, *recipe.channels),
        num_vq_embeddings=recipe.codes,
        mid_block_add_attention=False,
        sample_size=size,
    )


@torch.no_grad()
def _fill_codebook(module: torch.nn.Module, corrupted: torch.Tensor, generator: torch.Generator) -> None:
    latents = module.encode(corrupted).latents.permute(0, 2, 3, 1).flatten(0, 2)
    chosen = torch.randperm(len(latents), generator=generator)[: module.config.num_vq_embeddings]
    module.quantize.embedding.weight[: len(chosen)] = latents[chosen]


def _digest(images: torch.Tensor, task: Callable[[torch.Tensor], torch.Tensor], seed: int, recipe: Recipe) -> str:
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(repr((str(task), seed, asdict(recipe))).encode())
    return digest.hexdigest()[:16]


def _save_atomically(model: VQGAN, folder: Path) -> None:
    """A run cut short leaves no half model; of two at once, the first to finish wins."""
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    model.save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished)
        if not folder.is_dir():
            raise
