"""Models of every family with fixed random weights, so small that a step takes milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SIDE = 8  # pixels
FAMILIES = ("vqgan", "autoencoder", "mae", "diffusion", "mage")  # whose models are one module; see also pipelines.py


def vqmodel(**options: Any) -> Any:
    """Return a ``diffusers.VQModel`` of 8x8 grey images."""
    return _built("diffusers", "VQModel", _autoencoder | {"latent_channels": 4, "num_vq_embeddings": 16} | options)


def kl(**options: Any) -> Any:
    """Return a ``diffusers.AutoencoderKL`` of 8x8 grey images."""
    return _built("diffusers", "AutoencoderKL", _autoencoder | {"latent_channels": 2} | options)


def vitmae(**options: Any) -> Any:
    """Return a ``transformers.ViTMAEForPreTraining`` of 8x8 grey images in patches of 2 pixels."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16, "image_size": SIDE, "patch_size": 2, "num_channels": 1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes | options))


def unet(**options: Any) -> Any:
    """Return a ``diffusers.UNet2DModel`` that maps two grey images of 8x8 to one."""
    sizes = {
        "sample_size": SIDE, "in_channels": 2, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1, "attention_head_dim": 8,
    }  # fmt: skip
    return _built("diffusers", "UNet2DModel", sizes | options)


def mage(**options: Any) -> Any:
    """Return a ``MAGENetwork`` of 8x8 grey images in patches of 2 pixels."""
    from unlearn_ext.models.mage_network import MAGEConfig, MAGENetwork

    sizes: dict[str, Any] = {
        "image_size": SIDE, "num_channels": 1, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16,
        "decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2, "decoder_mlp_dim": 16, "vocab_size": 100,
        "codebook_size": 16, "codebook_dim": 4, "vqgan_widths": (32, 32, 32), "vqgan_blocks": 1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MAGENetwork(MAGEConfig(**sizes | options))


def model(family: str) -> Any:
    """Return a wrapped model of a family."""
    return wrapped(family)


def brief(family: str) -> Any:
    """Return a wrapped model of a family; diffusion samples pictures in few steps."""
    made = model(family)
    if family == "diffusion":
        made = type(made)(made.module, pytest.importorskip("diffusers").DDPMScheduler(num_train_timesteps=4))
    return made


def wrapped(family: str, **options: Any) -> Any:
    """Return a wrapped model of a family, with options of its configuration."""
    from unlearn_ext.models.autoencoder import AutoencoderKL
    from unlearn_ext.models.diffusion import Diffusion
    from unlearn_ext.models.mae import MAE
    from unlearn_ext.models.mage import MAGE
    from unlearn_ext.models.vqgan import VQGAN

    if family == "mage":
        pytest.importorskip("safetensors")  # its class is of this package, but saves as the others do
    if family == "diffusion":
        return Diffusion(unet(**options), pytest.importorskip("diffusers").DDPMScheduler(num_train_timesteps=100))
    kind, module = {
        "vqgan": (VQGAN, vqmodel), "autoencoder": (AutoencoderKL, kl), "mae": (MAE, vitmae), "mage": (MAGE, mage),
    }[family]  # fmt: skip
    return kind(module(**options))


def write_inputs(folder: Path, images: int) -> None:
    """Write a VQ-GAN to ``checkpoint``, and random grey images of 8x8 to ``ours`` and ``theirs``.

    Args:
        folder: existing folder in which the three folders are created.
        images: number of images per folder.
    """
    image = pytest.importorskip("PIL.Image")
    model("vqgan").save_pretrained(folder / "checkpoint")
    rng = np.random.default_rng(0)
    for side in ("ours", "theirs"):
        (folder / side).mkdir()
        for index in range(images):
            pixels = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            image.fromarray(pixels).save(folder / side / f"{index}.png")


_autoencoder = {
    "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4,
    "mid_block_add_attention": False, "sample_size": SIDE,
}  # fmt: skip


def _built(library: str, name: str, options: dict[str, Any]) -> Any:
    module = getattr(pytest.importorskip(library), name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module(**options)
