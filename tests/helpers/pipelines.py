"""Latent-diffusion pipelines of every supported class with fixed random weights, so small that a step is milliseconds.

A picture has 16x16 pixels, its latent 4 channels of 8x8.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SIDE = 16  # pixels
SCALE = 2  # pixels per latent
_WIDTH = 8  # of the text embeddings
_TOKENS = 77


def inpainting(**unet: Any) -> Any:
    """Return a tiny ``StableDiffusionInpaintPipeline``; options are those of its U-Net."""
    return _stable_diffusion(diffusers.StableDiffusionInpaintPipeline, {"in_channels": 9} | unet)


def stable_diffusion() -> Any:
    """Return the inpainting pipeline of Stable Diffusion 1.5 in its original size, with random weights, 4.3 GB."""
    pipeline = inpainting(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, norm_num_groups=32,
        cross_attention_dim=768, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    large_vae = vae(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, mid_block_add_attention=True,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=512,
    )  # fmt: skip
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
        )
    )
    parts = pipeline.components | {"vae": large_vae, "text_encoder": text}
    return _quiet(type(pipeline)(**parts, requires_safety_checker=False))


def pix2pix(**unet: Any) -> Any:
    """Return a tiny ``StableDiffusionInstructPix2PixPipeline``; options are those of its U-Net."""
    return _stable_diffusion(diffusers.StableDiffusionInstructPix2PixPipeline, {"in_channels": 8} | unet)


def xl_inpainting(**unet: Any) -> Any:
    """Return a tiny ``StableDiffusionXLInpaintPipeline``; options are those of its U-Net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = {
            "in_channels": 9, "cross_attention_dim": 2 * _WIDTH, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": _WIDTH + 6 * 4,
        }  # fmt: skip
        return _quiet(
            diffusers.StableDiffusionXLInpaintPipeline(
                vae=vae(), text_encoder=text_encoder(), tokenizer=tokenizer(),
                text_encoder_2=transformers.CLIPTextModelWithProjection(_text_config()), tokenizer_2=tokenizer(),
                unet=unet_condition(**wide | unet), scheduler=scheduler(),
            )
        )  # fmt: skip


def vae(**options: Any) -> Any:
    """Return a ``diffusers.AutoencoderKL`` with random weights."""
    sizes = {
        "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "mid_block_add_attention": False, "sample_size": SIDE,
    }  # fmt: skip
    return diffusers.AutoencoderKL(**sizes | options)


def unet_condition(**options: Any) -> Any:
    """Return a ``diffusers.UNet2DConditionModel`` with random weights."""
    sizes = {
        "sample_size": SIDE // SCALE, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": _WIDTH, "attention_head_dim": 2,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**sizes | options)


def text_encoder() -> Any:
    """Return a ``transformers.CLIPTextModel`` with random weights."""
    return transformers.CLIPTextModel(_text_config())


def tokenizer() -> Any:
    """Return a CLIP tokenizer without merges: every character is a token."""
    characters = transformers.models.clip.tokenization_clip.pre_tokenizers.ByteLevel.alphabet()
    tokens = [*sorted(characters), *(f"{c}</w>" for c in sorted(characters)), "<|startoftext|>", "<|endoftext|>"]
    made = transformers.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=_TOKENS
    )
    return made


def scheduler(**options: Any) -> Any:
    """Return the scheduler of Stable Diffusion."""
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    known = {"steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True}
    return diffusers.PNDMScheduler(**noise | known | options)


def _stable_diffusion(pipeline: Any, unet: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _quiet(
            pipeline(
                vae=vae(), text_encoder=text_encoder(), tokenizer=tokenizer(), unet=unet_condition(**unet),
                scheduler=scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
            )
        )  # fmt: skip


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _text_config() -> Any:
    return transformers.CLIPTextConfig(
        hidden_size=_WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=_WIDTH,
        vocab_size=514, max_position_embeddings=_TOKENS, bos_token_id=512, eos_token_id=513,
    )  # fmt: skip
