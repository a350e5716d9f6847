"""Small latent-diffusion pipelines that can fill holes or undo them, trained on photographs in a few minutes."""

from __future__ import annotations

from typing import Any

import pipelines
import torch

from unlearn_ext.models.latent_diffusion import LatentDiffusion
from unlearn_ext.tasks import Task

SIDE = 32  # pixels
_LATENTS = {"block_out_channels": (32, 64, 64), "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3, "sample_size": SIDE, "norm_num_groups": 8}  # fmt: skip
_UNET = {"block_out_channels": (32, 64), "sample_size": SIDE // 4, "norm_num_groups": 8, "attention_head_dim": 4}


def trained(make: Any, images: torch.Tensor, task: Task, vae_steps: int, unet_steps: int) -> Any:
    """Return a pipeline that is trained on images, uint8 [N, 3, 32, 32], to fill in what the task hides.

    Args:
        make: a function of :mod:`pipelines`.
        images: the images.
        task: the task T.
        vae_steps: steps of the VAE, with batches of 32.
        unet_steps: steps of the U-Net, likewise.
    """
    generator = torch.Generator().manual_seed(0)
    pipeline = make(**_UNET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline.vae = pipelines.vae(**_LATENTS)
        pipeline = type(pipeline)(**pipeline.components, requires_safety_checker=False)  # reads the VAE's scale
        _train_vae(pipeline.vae, images, vae_steps, generator)
        _train_unet(pipeline, images, task, unet_steps, generator)
    return pipeline


def _train_vae(vae: Any, images: torch.Tensor, steps: int, generator: torch.Generator) -> None:
    """Train a VAE to reconstruct, and set its ``scaling_factor`` so that latents have variance 1."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    for batch, rate in _batches(images, steps, generator):
        optimizer.param_groups[0]["lr"] = 2e-3 * rate
        latents = vae.encode(batch).latent_dist
        made = vae.decode(latents.mode() + 0.05 * torch.randn(latents.mean.shape, generator=generator)).sample
        loss = (made - batch).square().mean() + (made - batch).abs().mean() + 1e-4 * latents.mean.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        vae.register_to_config(scaling_factor=1 / vae.encode(_floats(images[:64])).latent_dist.mode().std().item())


def _train_unet(pipeline: Any, images: torch.Tensor, task: Task, steps: int, generator: torch.Generator) -> None:
    """Train a U-Net to predict the noise."""
    model = LatentDiffusion(pipeline)
    model.module.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=2e-3)
    for draw, (batch, rate) in enumerate(_batches(images, steps, generator)):
        optimizer.param_groups[0]["lr"] = 2e-3 * rate
        inputs = model.inputs(batch, task, draw + 1)
        predicted = model.module(model.seen(*inputs), inputs[2], encoder_hidden_states=inputs[-1]).sample
        (predicted - inputs[1]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.module.requires_grad_(False)


def _batches(images: torch.Tensor, steps: int, generator: torch.Generator) -> Any:
    """Yield minibatches of 32 images, float in [-1, 1], and the learning rate's factor, which falls to 0."""
    for step in range(steps):
        chosen = torch.randint(len(images), (32,), generator=generator)
        yield _floats(images[chosen]), min(1.0, 2 * (steps - step) / steps)


def _floats(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1
